"""PixArt-alpha (told its size) and PixArt-Sigma, tiny."""

import torch
from tiny_families import parts

SIZES = parts.SIZES
SETTINGS = {"t5_tokens": 16}
reconstruct = parts.reconstruct


def build(published):
    import diffusers

    torch.manual_seed(0)
    sigma = "Sigma" in published.checkpoint
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=24,
        sample_size=8 if sigma else 128,  # alpha's pipeline tells the size to networks of 128 latents only
        norm_num_groups=4,
        caption_channels=32,
        use_additional_conditions=published.network.get("use_additional_conditions"),
    )
    return getattr(diffusers, "PixArtSigmaPipeline" if sigma else "PixArtAlphaPipeline")(
        transformer=parts.livelier(transformer),
        scheduler=parts.scheduler(published.scheduler),
        vae=parts.vae(latent_channels=4, scaling_factor=0.5),
        text_encoder=parts.t5(),
        tokenizer=parts.tokenizer(),
    )


def sample(pipeline, prompts, z, size, num_steps, guidance, **options):
    options |= {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 16}
    return parts.stock(pipeline, prompts, z, size, num_inference_steps=num_steps, guidance_scale=guidance, **options)
