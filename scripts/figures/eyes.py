"""Says how well the embedded readers see: against the judge on the base's images, and the counts of true drawings.

python scripts/figures/eyes.py
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

sys.path.insert(0, str(Path(__file__).parents[2]))

from align.shapes import eye
from align.shapes.prompts import prompts
from scripts.pretrain.common import CHECKPOINTS, generator
from scripts.pretrain.detector import counts_of
from scripts.pretrain.eye import figures_of

COUNT, BATCH, SEED = 768, 128, 77


def main() -> None:
    pipe: Any = StableDiffusionPipeline.from_pretrained(CHECKPOINTS / "shapes-sd", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    captions, images = prompts("select", COUNT, SEED), []
    for k in range(0, COUNT, BATCH):  # six steps without guidance, as draft/shapes draws
        options = {"num_inference_steps": 6, "guidance_scale": 1.0, "output_type": "pt"}
        images.append(pipe(prompt=captions[k : k + BATCH], generator=generator(SEED, k), **options).images)
    for name in ("shapes-eye", "shapes-detector"):
        reader = eye.load(CHECKPOINTS / name)
        print(name, figures_of(reader, torch.cat(images), captions), counts_of(reader))


if __name__ == "__main__":
    main()
