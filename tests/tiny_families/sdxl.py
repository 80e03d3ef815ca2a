"""SDXL, tiny."""

import torch
from tiny_families import parts

SIZES = parts.SIZES
reconstruct = parts.reconstruct
SETTINGS = {}


def build(published):
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 8,
    )
    return StableDiffusionXLPipeline(
        vae=parts.vae(latent_channels=4, scaling_factor=0.5, force_upcast=True),
        text_encoder=parts.clip_text(),
        text_encoder_2=parts.clip_text(projection=8),
        tokenizer=parts.clip_tokenizer(),
        tokenizer_2=parts.clip_tokenizer(),
        unet=parts.livelier(unet),
        scheduler=parts.scheduler(published.scheduler),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def sample(pipeline, prompts, z, size, num_steps, guidance, **options):
    return parts.stock(pipeline, prompts, z, size, num_inference_steps=num_steps, guidance_scale=guidance, **options)
