"""Guided trajectories of shapes-sd from pure noise, kept at the times where a student's steps begin and end."""

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from align.shapes.prompts import prompts
from scripts.pretrain import samples, sd, web
from scripts.pretrain.common import DEVICE, WORK, cached, generator

COUNT, STOPS, FINE, BATCH = 6144, 4, 3, 128  # trajectories, kept times, teacher's steps between two of them


def scheduler(prediction: str) -> DDIMScheduler:
    """The base model's noise levels on a grid that starts at the last of them and ends at the data."""
    base = sd.scheduler().config
    levels = {k: base[k] for k in ("beta_start", "beta_end", "beta_schedule", "clip_sample", "steps_offset")}
    return DDIMScheduler(**levels, prediction_type=prediction, timestep_spacing="trailing", set_alpha_to_one=True)


def load(seed: int = 0) -> tuple[Tensor, list[str]]:
    """(states (COUNT, STOPS + 1, 4, 8, 8), captions): from x_T at [:, 0] to x_0 at [:, -1]."""
    captions, pipe = prompts("train", COUNT, seed + 2), web.load().to(DEVICE)
    file = WORK / (f"trajectories-{seed}.safetensors" if seed else "trajectories.safetensors")
    data = cached(
        file,
        samples.networks([pipe]),
        (captions, STOPS, FINE, sd.GUIDANCE),
        lambda: {"states": _make(pipe, captions, seed)},
    )
    return data["states"].float(), captions


@torch.no_grad()
def _make(pipe: StableDiffusionPipeline, captions: list[str], seed: int) -> Tensor:
    grid = scheduler("epsilon")
    unet = pipe.unet.to(memory_format=torch.channels_last)
    grid.set_timesteps(STOPS * FINE)
    states, rows = samples.embed(captions, pipe)
    x, out = torch.randn(COUNT, 4, 8, 8, generator=generator(seed, 24)), []
    for k in tqdm(range(0, COUNT, BATCH), desc="trajectories", mininterval=5):
        x_t, words = x[k : k + BATCH].to(DEVICE), states[rows[k : k + BATCH]]
        both = torch.cat([states[:1].expand_as(words), words])
        kept = [x_t]
        for i, t in enumerate(grid.timesteps):
            blank, full = unet(torch.cat([x_t, x_t]), t, both).sample.chunk(2)
            x_t = grid.step(blank + sd.GUIDANCE * (full - blank), t, x_t).prev_sample
            if (i + 1) % FINE == 0:
                kept.append(x_t)
        out.append(torch.stack(kept, 1).half().cpu())
    return torch.cat(out)
