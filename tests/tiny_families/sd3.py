"""Stable Diffusion 3 and 3.5, tiny; 3.5-large without its T5, 3.5-medium with twice the same CLIP."""

import copy

import torch
from tiny_families import parts

SIZES = parts.SIZES
reconstruct = parts.reconstruct
SETTINGS = {"t5_tokens": 16}


def build(published):
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    with_t5 = "large" not in published.checkpoint
    first, second = (parts.clip_text(width=width, projection=8) for width in (12, 16))
    if "medium" in published.checkpoint and "3.5" in published.checkpoint:
        first = copy.deepcopy(second)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
        dual_attention_layers=published.network.get("dual_attention_layers", ())[:1],
        qk_norm=published.network.get("qk_norm"),
    )
    return StableDiffusion3Pipeline(
        transformer=parts.livelier(transformer),
        scheduler=parts.scheduler(published.scheduler),
        vae=parts.vae(latent_channels=4, scaling_factor=0.5, shift_factor=0.1, use_quant_conv=False),
        text_encoder=first,
        tokenizer=parts.clip_tokenizer(),
        text_encoder_2=second,
        tokenizer_2=parts.clip_tokenizer(),
        text_encoder_3=parts.t5() if with_t5 else None,
        tokenizer_3=parts.tokenizer() if with_t5 else None,
    )


def sample(pipeline, prompts, z, size, num_steps, guidance, **options):
    options = {"max_sequence_length": 16, **options}
    return parts.stock(pipeline, prompts, z, size, num_inference_steps=num_steps, guidance_scale=guidance, **options)
