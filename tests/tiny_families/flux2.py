"""FLUX.2-klein, tiny."""

import torch
from tiny_families import parts

SIZES = parts.SIZES
SETTINGS = {"text_tokens": 16, "text_layers": (1, 2, 2)}
reconstruct = parts.reconstruct
UNGUIDED = ("black-forest-labs/FLUX.2-klein-4B",)  # distilled: its pipeline ignores guidance


def build(published):
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel

    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        latent_channels=4,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
    )
    vae.bn.running_mean.normal_(0, 0.2)
    vae.bn.running_var.uniform_(0.5, 1.5)
    return Flux2KleinPipeline(
        transformer=parts.livelier(transformer),
        scheduler=parts.scheduler(published.scheduler),
        vae=parts.livelier(vae),
        text_encoder=parts.qwen3(),
        tokenizer=parts.chat_tokenizer(),
        is_distilled="base" not in published.checkpoint,
    )


def sample(pipeline, prompts, z, size, num_steps, guidance, output_type="latent"):
    """What it returns as latents are the autoencoder's own."""
    out = parts.stock(
        pipeline,
        prompts,
        z,
        size,
        num_inference_steps=num_steps,
        guidance_scale=guidance,
        max_sequence_length=16,
        text_encoder_out_layers=(1, 2, 2),
        output_type=output_type,
    )
    if output_type != "latent":
        return out
    bn = pipeline.vae.bn
    mean, variance = bn.running_mean.view(1, -1, 1, 1), bn.running_var.view(1, -1, 1, 1)
    return (pipeline._patchify_latents(out) - mean) / (variance + pipeline.vae.config.batch_norm_eps).sqrt()
