"""Krea 2, tiny."""

import torch
from tiny_families import parts, qwen_image

SIZES = parts.SIZES
SETTINGS = {"text_tokens": 40}
reconstruct = qwen_image.reconstruct


def build(published):
    from diffusers import Krea2Pipeline, Krea2Transformer2DModel
    from transformers import Qwen3VLConfig, Qwen3VLModel

    torch.manual_seed(0)
    tokenizer = parts.chat_tokenizer()
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(2, 2, 4),
    )
    text = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "deepstack_visual_indexes": [0],
        },
    )
    return Krea2Pipeline(
        transformer=parts.livelier(transformer, 2.5),
        scheduler=parts.scheduler(published.scheduler),
        vae=qwen_image.vae(),
        text_encoder=parts.livelier(Qwen3VLModel(text)),
        tokenizer=tokenizer,
        text_encoder_select_layers=(0, 1, 2),
        is_distilled="Turbo" in published.checkpoint,
    )


def sample(pipeline, prompts, z, size, num_steps, guidance, output_type="latent", **options):
    """It counts guidance from 0."""
    out = parts.stock(
        pipeline,
        prompts,
        pipeline._pack_latents(z, *z.shape),
        size,
        num_inference_steps=num_steps,
        guidance_scale=guidance - 1,
        max_sequence_length=40,
        output_type=output_type,
        **options,
    )
    return pipeline._unpack_latents(out, *size).squeeze(2) if output_type == "latent" else out
