"""Draw docs/img/shapes.png: for each of the six skills ground truth, and what shapes-sd makes of the same captions."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from align.figures.picture import Cell, sheet
from align.shapes.captions import parse
from align.shapes.compose import compose
from align.shapes.embedded import resolve
from align.shapes.judge import judge
from align.shapes.prompts import prompts
from align.shapes.scene import render_batch

OUTPUT = Path(__file__).parents[2] / "docs" / "img" / "shapes.png"


def main() -> None:
    """Two captions a skill of the report set; the same seed always; nothing chosen by its looks."""
    captions = prompts("report", 12)
    rng = np.random.default_rng(0)
    truth = render_batch([compose(parse(c), rng) for c in captions])
    pipe: Any = StableDiffusionPipeline.from_pretrained(resolve("embedded:shapes-sd")).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(
        prompt=captions,
        num_inference_steps=20,
        guidance_scale=2.0,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images
    groups = []
    for caption, a, b in zip(captions, truth, drawn, strict=True):
        cells = []
        for title, pixels in (("truth", a), ("shapes-sd", b)):
            right = judge(pixels[None], [caption])[0].strict
            cells.append(Cell(pixels, title, f"judge: {'yes' if right else 'no'}", right))
        groups.append((caption, cells))
    sheet(groups, columns=3).save(OUTPUT)


if __name__ == "__main__":
    main()
