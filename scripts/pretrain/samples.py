"""Samples of the base model on the training prompts, kept with the noise they came from: food for tune, pick and eye.

Every second batch is drawn by the base as the web left it, where that stage is done: alignment starts there and ends
near the capable base, and what scores it must see well on the whole way.
"""

import json

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from align.shapes.prompts import prompts
from scripts.pretrain import sd, text
from scripts.pretrain.common import WORK, generator

COUNT, STEPS, BATCH = 8192, 10, 128


def bases() -> list[StableDiffusionPipeline]:
    """The capable base and, where it is there, the base as the web left it."""
    from scripts.pretrain import web

    return [sd.load()] + ([web.load()] if (WORK / "out" / "web").exists() else [])


def load(seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    """(x_T, x_0, captions): noise and scaled latents (COUNT, 4, 8, 8); four samples of a prompt stand side by side."""
    name = f"samples-{seed}" if seed else "samples"
    file, words = WORK / f"{name}.safetensors", WORK / f"{name}.json"
    if not words.exists():
        pipes = bases()
        captions = [c for c in prompts("train", COUNT // 4, seed) for _ in range(4)]
        noise = torch.randn(COUNT, 4, 8, 8, generator=generator(seed, 8))
        out = []
        for k in tqdm(range(0, COUNT, BATCH), desc="samples", mininterval=5):
            part = pipes[k // BATCH % len(pipes)](
                prompt=captions[k : k + BATCH],
                latents=noise[k : k + BATCH],
                num_inference_steps=STEPS,
                guidance_scale=sd.GUIDANCE,
                output_type="latent",
            )
            out.append(part.images)
        save_file({"x_T": noise, "x_0": torch.cat(out).contiguous()}, file)
        words.write_text(json.dumps(captions))
    data = load_file(file)
    return data["x_T"], data["x_0"], json.loads(words.read_text())


@torch.no_grad()
def decode(latents: Tensor) -> Tensor:
    """Scaled latents -> pictures in [0, 1]."""
    network = sd.vae.load()
    parts = [network.decode(z / network.config["scaling_factor"]).sample for z in latents.split(256)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def embed(captions: list[str], pipe) -> tuple[Tensor, Tensor]:
    """Text states (U, LENGTH, 128) of the unique captions and the row of each caption in them; row 0 is empty text."""
    unique = ["", *dict.fromkeys(captions)]
    where = {c: i for i, c in enumerate(unique)}
    states = torch.cat([pipe.text_encoder(ids)[0] for ids in text.tokens(unique).split(256)])
    return states, torch.tensor([where[c] for c in captions])
