"""A Stable Diffusion folder of random weights, for timing: python scripts/bench/random_sd.py OUT [--unet 64,128,256]

It loads in current libraries and in those of 2024 alike (vocab.json and merges.txt beside tokenizer.json).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch


def widths(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def build(
    out: Path, unet: tuple[int, ...], vae: tuple[int, ...], *, sample: int = 16, cross: int = 64, vae_layers: int = 1
) -> None:
    """Writes the folder; `sample` is the latent's side, so images have sample 2^(len(vae) - 1) pixels a side.

    `vae_layers`: residual layers a level of the autoencoder; Stable Diffusion's has 2.
    """
    import diffusers as typed
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    diffusers: Any = typed  # its annotations name single-element tuples where any length goes
    torch.manual_seed(0)
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    end = vocabulary["<|endoftext|>"]
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=cross,
        intermediate_size=2 * cross,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    depth = len(unet)
    diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(
            sample_size=sample,
            block_out_channels=unet,
            down_block_types=(*["CrossAttnDownBlock2D"] * (depth - 1), "DownBlock2D"),
            up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * (depth - 1)),
            cross_attention_dim=cross,
        ),
        vae=diffusers.AutoencoderKL(
            sample_size=sample * 2 ** (len(vae) - 1),
            block_out_channels=vae,
            down_block_types=("DownEncoderBlock2D",) * len(vae),
            up_block_types=("UpDecoderBlock2D",) * len(vae),
            layers_per_block=vae_layers,
            norm_num_groups=16,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(out)
    (out / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (out / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--unet", type=widths, default=(64, 128, 256))
    parser.add_argument("--vae", type=widths, default=(32, 64, 64))
    arguments = parser.parse_args()
    build(arguments.out, arguments.unet, arguments.vae)
