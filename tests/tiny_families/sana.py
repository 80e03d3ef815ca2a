"""Sana, tiny."""

import torch
from tiny_families import parts

SIZES = parts.SIZES
SETTINGS = {"text_tokens": 8}


def build(published):
    from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(0)
    tokenizer = parts.chat_tokenizer(begins=True)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        upsample_block_type="interpolate",
        downsample_block_type="conv",
        scaling_factor=0.41407,
    )
    text = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return SanaPipeline(
        transformer=parts.livelier(transformer),
        scheduler=parts.scheduler(published.scheduler),
        vae=parts.livelier(vae),
        text_encoder=parts.livelier(Gemma2Model(text)),
        tokenizer=tokenizer,
    )


def sample(pipeline, prompts, z, size, num_steps, guidance, **options):
    options |= {"use_resolution_binning": False, "max_sequence_length": 8}
    return parts.stock(pipeline, prompts, z, size, num_inference_steps=num_steps, guidance_scale=guidance, **options)


def reconstruct(pipeline, pixels):
    with torch.no_grad():
        z = pipeline.vae.encode(2 * pixels - 1).latent
        return (pipeline.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
