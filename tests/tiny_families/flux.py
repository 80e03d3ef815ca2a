"""FLUX.1, tiny."""

import torch
from tiny_families import parts

SIZES = parts.SIZES
reconstruct = parts.reconstruct
SETTINGS = {"t5_tokens": 16}


def build(published):
    from diffusers import FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=published.network.get("guidance_embeds", False),
        axes_dims_rope=(2, 2, 4),
    )
    return FluxPipeline(
        transformer=parts.livelier(transformer),
        scheduler=parts.scheduler(published.scheduler),
        vae=parts.vae(latent_channels=4, scaling_factor=0.5, shift_factor=0.1, use_quant_conv=False),
        text_encoder=parts.clip_text(),
        tokenizer=parts.clip_tokenizer(),
        text_encoder_2=parts.t5(),
        tokenizer_2=parts.tokenizer(),
    )


def sample(pipeline, prompts, z, size, num_steps, guidance, output_type="latent", negative_prompt=None):
    """Its guidance_scale is the distilled one; ours is its true_cfg_scale."""
    out = parts.stock(
        pipeline,
        prompts,
        pipeline._pack_latents(z, *z.shape),
        size,
        num_inference_steps=num_steps,
        guidance_scale=3.5,
        true_cfg_scale=guidance,
        negative_prompt=negative_prompt or [""] * len(prompts),
        max_sequence_length=16,
        output_type=output_type,
    )
    return pipeline._unpack_latents(out, *size, pipeline.vae_scale_factor) if output_type == "latent" else out
