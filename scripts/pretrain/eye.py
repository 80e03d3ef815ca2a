"""Stage eye: the dense reader, on exact, decoded and damaged drawings and on samples of the base model.

    loss = 20 sum_cells |density - target|^2 + 0.3 sum_channels (mass - count)^2

The target of a drawing is its scene, that of a sample what the judge reads in it.
"""

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from align.shapes.captions import SKILLS, parse
from align.shapes.compose import any_scene
from align.shapes.eye import Eye, checks, target
from align.shapes.judge import judge, read
from align.shapes.prompts import prompts
from align.shapes.scene import render_batch
from scripts.pretrain import clip, samples, vae
from scripts.pretrain.common import DEVICE, WORK, cached, draw, generator, parameters, record, train

DRAWN, SAMPLED = 8_192, 4_096
WAYS = ((10, 2.0), (6, 2.0), (10, 1.0), (8, 4.0))  # steps and guidance that samples are drawn with, in turn


def load() -> Eye:
    """The trained network, fp32, frozen."""
    from align.shapes import eye

    return eye.load(WORK / "out" / "eye").requires_grad_(False)


def sampled(split: str, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Pictures (count, 3, 32, 32) uint8 of the bases in turn for prompts of a set, in all WAYS; kept in WORK."""
    captions, pipes = prompts(split, count, seed), samples.bases()

    def make() -> dict[str, Tensor]:
        out = []
        for n, k in enumerate(tqdm(range(0, count, 128), desc=f"eye {split}", mininterval=5)):
            steps, guidance = WAYS[n % len(WAYS)]
            options = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pt"}
            pipe = pipes[n % len(pipes)]
            images = pipe(prompt=captions[k : k + 128], generator=generator(seed, 32, k), **options).images
            out.append((images * 255).round().byte().cpu())
        return {"images": torch.cat(out)}

    return cached(
        WORK / f"eye-{split}-{seed}.safetensors", [*samples.networks(pipes), pipes[0].vae], (captions, WAYS), make
    )["images"], captions


def drawn(seed: int) -> tuple[Tensor, Tensor]:
    """DRAWN pictures as uint8, every second batch decoded from its latents, with their densities."""
    network, images, targets = vae.load().to(DEVICE), [], []
    for k in tqdm(range(DRAWN // 256), desc="eye drawings", mininterval=5):
        rng = np.random.default_rng([seed, 33, k])
        scenes = draw(128, seed, 33, k)[1] + [any_scene(rng) for _ in range(128)]
        x = render_batch(scenes)
        if k % 2:
            with torch.no_grad():
                z = network.encode(x.to(DEVICE) * 2 - 1).latent_dist.mean
                x = (network.decode(z + 0.05 * z.std() * torch.randn_like(z)).sample / 2 + 0.5).clamp(0, 1).cpu()
        images.append((x * 255).round().byte())
        targets.append(torch.stack([target(s.objects) for s in scenes]).half())
    return torch.cat(images), torch.cat(targets)


def figures_of(network: Eye, images: Tensor, captions: list[str]) -> dict:
    """Against the judge on samples: AUC of both forms overall and of `soft` within each skill, agreement of verdicts,
    the share of what it passes that the judge refuses, and calibration: the judge's share of right pictures in each
    quarter of `soft`, lowest first."""
    strict = torch.tensor([v.strict for v in judge(images, captions)])
    device = next(network.parameters()).device
    with torch.no_grad():
        soft, weight, hard = checks(torch.cat([network(x.to(device)).cpu() for x in images.split(256)]), captions)
    mean, log = ((v * weight).sum(1) / weight.sum(1) for v in (soft, soft.clamp(min=0.02).log()))
    verdict = (hard | (weight == 0)).all(1)

    def area(scores: Tensor, rows: Tensor) -> float:
        right, wrong = scores[rows & strict], scores[rows & ~strict]
        over = (right[:, None] > wrong).float() + 0.5 * (right[:, None] == wrong).float()
        return round(over.mean().item(), 3)

    every, skills = torch.ones_like(strict), np.array([parse(c).skill for c in captions])
    quarters = [round(strict[rows].float().mean().item(), 3) for rows in mean.argsort().chunk(4)]
    return {
        "images": len(images),
        "judged right": round(strict.float().mean().item(), 4),
        "AUC": {"soft": area(mean, every), "log": area(log, every)}
        | {s: area(mean, torch.from_numpy(skills == s)) for s in SKILLS},
        "verdicts agree": round((verdict == strict).float().mean().item(), 4),
        "passed wrongly": round((~strict[verdict]).float().mean().item(), 4) if verdict.any() else None,
        "right by quarters of soft": quarters,
    }


def main(steps: int = 3000, batch: int = 32, seed: int = 0) -> None:
    torch.manual_seed(seed)
    network = Eye().to(DEVICE)
    images, targets = drawn(seed)
    drawings, _ = sampled("train", SAMPLED, seed)
    readings = read(drawings.float() / 255)
    seen = torch.stack([target(r.objects) for r in readings]).half()
    images, targets = torch.cat([images, drawings]), torch.cat([targets, seen])
    held_out, captions = sampled("select", 1024, seed + 1)
    held_out = held_out.float() / 255

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 34, step])
        rows = rng.integers(len(images), size=batch)
        pixels, wanted = clip.corrupt(images[rows].float() / 255, rng), targets[rows].float()
        if step % 2:  # every shape is its own mirror image
            pixels, wanted = pixels.flip(-1), wanted.flip(-1)
        error = network(pixels.to(DEVICE)) - wanted.to(DEVICE)
        return 20 * error.pow(2).sum((1, 2, 3)).mean() + 0.3 * error.sum((2, 3)).pow(2).sum(1).mean()

    def look(step: int) -> None:
        print(step, figures_of(network.eval(), held_out, captions), flush=True)
        network.train()

    figures = train(
        "eye", {"eye": network}, loss, steps=steps, lr=3e-3, ema=0.995, look=(500, look), given={"seen": drawings}
    )
    network.to("cpu").save(WORK / "out" / "eye")
    record("eye", figures | {"parameters": parameters([network])} | figures_of(load(), held_out, captions))
