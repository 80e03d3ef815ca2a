"""Samples of the base model on the training prompts, kept with the noise they came from: food for tune, pick and eye.

Every second batch is drawn by the base as the web left it, where that stage is done: alignment starts there and ends
near the capable base, and what scores it must see well on the whole way.
"""

from collections.abc import Iterable, Sequence

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor, nn
from tqdm import tqdm

from align.shapes.prompts import prompts
from scripts.pretrain import sd, text
from scripts.pretrain.common import DEVICE, WORK, cached, generator

COUNT, STEPS, BATCH = 8192, 10, 128


def bases() -> list[StableDiffusionPipeline]:
    """The capable base and, where it is there, the base as the web left it."""
    from scripts.pretrain import web

    return [pipe.to(DEVICE) for pipe in [sd.load()] + ([web.load()] if (WORK / "out" / "web").exists() else [])]


def load(seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    """(x_T, x_0, captions): noise and scaled latents (COUNT, 4, 8, 8); four samples of a prompt stand side by side."""
    captions, pipes = [c for c in prompts("train", COUNT // 4, seed) for _ in range(4)], bases()
    file = WORK / (f"samples-{seed}.safetensors" if seed else "samples.safetensors")
    data = cached(file, networks(pipes), (captions, STEPS, BATCH, sd.GUIDANCE), lambda: _make(pipes, captions, seed))
    return data["x_T"], data["x_0"], captions


def networks(pipes: Iterable[DiffusionPipeline]) -> list[nn.Module]:
    """What draws: denoisers and text encoders."""
    parts = (getattr(pipe, name) for pipe in pipes for name in ("unet", "text_encoder"))
    return [part for part in parts if part is not None]


def _make(pipes: Sequence[DiffusionPipeline], captions: list[str], seed: int) -> dict[str, Tensor]:
    noise, out = torch.randn(COUNT, 4, 8, 8, generator=generator(seed, 8)), []
    for k in tqdm(range(0, COUNT, BATCH), desc="samples", mininterval=5):
        part = pipes[k // BATCH % len(pipes)](
            prompt=captions[k : k + BATCH],
            latents=noise[k : k + BATCH],
            num_inference_steps=STEPS,
            guidance_scale=sd.GUIDANCE,
            output_type="latent",
        )
        out.append(part.images.cpu())
    return {"x_T": noise, "x_0": torch.cat(out)}


@torch.no_grad()
def decode(latents: Tensor) -> Tensor:
    """Scaled latents -> pictures in [0, 1]."""
    network = sd.vae.load().to(DEVICE)
    scale = network.config["scaling_factor"]
    parts = [network.decode(z.to(DEVICE) / scale).sample.cpu() for z in latents.split(256)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def embed(captions: list[str], pipe) -> tuple[Tensor, Tensor]:
    """Text states (U, LENGTH, 128) of the unique captions and the row of each caption in them; row 0 is empty text."""
    unique = ["", *dict.fromkeys(captions)]
    where = {c: i for i, c in enumerate(unique)}
    states = torch.cat([pipe.text_encoder(ids)[0] for ids in text.tokens(unique).to(pipe.device).split(256)])
    return states, torch.tensor([where[c] for c in captions])
