"""Stage detector: the network of stage eye as a more exact reader, trained longer, on drawings that never repeat.

    loss = 20 sum_cells |density - target|^2 + sum_channels (mass - count)^2

Every step has drawings of its own, exact, decoded or damaged, beside the samples of stage eye. It counts and agrees
with the judge better than `shapes-eye`; what trains by its gradient gains less (docs/lab/draft.md).
"""

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from align.shapes.compose import any_scene
from align.shapes.eye import Eye, target
from align.shapes.judge import read
from align.shapes.scene import render_batch
from scripts.pretrain import clip, vae
from scripts.pretrain.common import DEVICE, WORK, draw, generator, parameters, record, train
from scripts.pretrain.eye import SAMPLED, figures_of, sampled

DRAWN = 20  # drawings a step


def load() -> Eye:
    """The trained network, fp32, frozen."""
    from align.shapes import eye

    return eye.load(WORK / "out" / "detector").requires_grad_(False)


def drawn(network: AutoencoderKL, seed: int, step: int, count: int = DRAWN) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, 32, 32) in [0, 1] of a step, every fourth step's decoded from their latents, with their
    densities."""
    rng = np.random.default_rng([seed, 33, step])
    scenes = draw(count // 2, seed, 33, step)[1] + [any_scene(rng) for _ in range(count - count // 2)]
    x = render_batch(scenes)
    if step % 4 == 3:
        with torch.no_grad():
            z = network.encode(x * 2 - 1).latent_dist.mean
            noise = torch.randn(z.shape, generator=generator(seed, 33, step))
            x = (network.decode(z + 0.05 * z.std() * noise).sample / 2 + 0.5).clamp(0, 1)
    return x, torch.stack([target(s.objects) for s in scenes])


def counts_of(network: Eye, drawings: int = 600) -> dict:
    """How far the mass of all objects is from their number in exact drawings of any scene."""
    rng = np.random.default_rng([35])
    scenes = [any_scene(rng) for _ in range(drawings)]
    with torch.no_grad():
        seen = network(render_batch(scenes).to(next(network.parameters()).device))
        masses = seen[:, -1].sum((1, 2)).cpu()
    wrong = (masses - torch.tensor([float(len(s.objects)) for s in scenes])).abs()
    return {
        "drawings": drawings,
        "mean": round(wrong.mean().item(), 4),
        "within 0.1": round((wrong < 0.1).float().mean().item(), 4),
        "most": round(wrong.max().item(), 3),
    }


def main(steps: int = 5000, batch: int = 32, seed: int = 0) -> None:
    torch.manual_seed(seed)
    network, decoder = Eye().to(DEVICE), vae.load()
    images, _ = sampled("train", SAMPLED, seed)
    seen = torch.stack([target(r.objects) for r in read(images.float() / 255)]).half()
    held_out, captions = sampled("select", 1024, seed + 1)
    held_out = held_out.float() / 255

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 34, step])
        rows = rng.integers(len(seen), size=batch - DRAWN)
        exact, known = drawn(decoder, seed, step)
        pixels = clip.corrupt(torch.cat([exact, images[rows].float() / 255]), rng)
        wanted = torch.cat([known, seen[rows].float()])
        if step % 2:  # every shape is its own mirror image
            pixels, wanted = pixels.flip(-1), wanted.flip(-1)
        error = network(pixels.to(DEVICE)) - wanted.to(DEVICE)
        return 20 * error.pow(2).sum((1, 2, 3)).mean() + error.sum((2, 3)).pow(2).sum(1).mean()

    def look(step: int) -> None:
        network.eval()
        print(step, figures_of(network, held_out, captions), "counts", counts_of(network), flush=True)
        network.train()

    figures = train(
        "detector",
        {"detector": network},
        loss,
        steps=steps,
        lr=3e-3,
        ema=0.995,
        look=(500, look),
        given={"seen": images},
    )
    network.to("cpu").save(WORK / "out" / "detector")
    figures |= {"parameters": parameters([network])} | figures_of(load(), held_out, captions)
    record("detector", figures | {"counts of drawings": counts_of(load())})
