"""Z-Image, tiny."""

import torch
from tiny_families import parts

SIZES = parts.SIZES
SETTINGS = {"text_tokens": 24}
reconstruct = parts.reconstruct


def build(published):
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return ZImagePipeline(
        transformer=parts.livelier(transformer),
        scheduler=parts.scheduler(published.scheduler),
        vae=parts.vae(latent_channels=4, scaling_factor=0.5, shift_factor=0.1, use_quant_conv=False),
        text_encoder=parts.qwen3(causal=False),
        tokenizer=parts.chat_tokenizer(),
    )


def sample(pipeline, prompts, z, size, num_steps, guidance, **options):
    """It counts guidance from 0."""
    options |= {"guidance_scale": guidance - 1, "max_sequence_length": 24}
    return parts.stock(pipeline, prompts, z, size, num_inference_steps=num_steps, **options)
