"""Qwen-Image, tiny."""

import torch
from tiny_families import parts

SIZES = parts.SIZES
SETTINGS = {"text_tokens": 40}


def vae():
    from diffusers import AutoencoderKLQwenImage

    made = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.7, 1.0, 2.0],
    )
    return parts.livelier(made)


def build(published):
    from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    tokenizer = parts.chat_tokenizer()
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
    )
    text = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
        },
    )
    return QwenImagePipeline(
        transformer=parts.livelier(transformer),
        scheduler=parts.scheduler(published.scheduler),
        vae=vae(),
        text_encoder=parts.livelier(Qwen2_5_VLForConditionalGeneration(text)),
        tokenizer=tokenizer,
    )


def sample(pipeline, prompts, z, size, num_steps, guidance, output_type="latent", negative_prompt=None):
    out = parts.stock(
        pipeline,
        prompts,
        pipeline._pack_latents(z, *z.shape),
        size,
        num_inference_steps=num_steps,
        true_cfg_scale=guidance,
        negative_prompt=negative_prompt or [" "] * len(prompts),
        output_type=output_type,
    )
    if output_type != "latent":
        return out
    return pipeline._unpack_latents(out, *size, pipeline.vae_scale_factor).squeeze(2)


def reconstruct(pipeline, pixels):
    with torch.no_grad():
        z = pipeline.vae.encode((2 * pixels - 1).unsqueeze(2)).latent_dist.mean
        return (pipeline.vae.decode(z).sample.squeeze(2) / 2 + 0.5).clamp(0, 1)
