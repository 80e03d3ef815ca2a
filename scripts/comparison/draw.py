"""Pictures of what the compared methods make of the base model's images: the first report prompts, none left out."""

from pathlib import Path

import torch

from align.training.evaluate import before_after
from scripts.comparison.measure import Bench, judges
from scripts.comparison.methods import METHODS


def draw(bench: Bench, name: str, seed: int, images: Path, *, count: int = 8, verdict: str = "judge") -> Path | None:
    """`images`/method-NAME.png with the verdicts of that judge, of the adapter that the method was reported with."""
    folder = bench.output / name / f"seed-{seed}" / "run"
    if not (folder / "adapter").is_dir():
        return None
    painter, prompts = bench.trained(METHODS[name], seed, folder), bench.prompts()[:count]
    told = []
    with torch.no_grad():
        for role in ("reference", "train"):
            scores, drawn = painter.score(role, prompts, judges(), stream="report", num_images=count)
            told.append((scores[verdict], drawn))
    path = images / f"method-{name}.png"
    before_after(verdict, prompts, *told).save(path, optimize=True)
    return path
