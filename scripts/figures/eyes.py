"""Says how well the embedded readers see: against the judge on the base's images, and the counts of true drawings.

python scripts/figures/eyes.py
python scripts/figures/eyes.py RUN...        # on the images of models that were trained, which know what it looks at
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from align.shapes import eye
from align.shapes.prompts import prompts
from scripts.pretrain.common import CHECKPOINTS, generator
from scripts.pretrain.detector import counts_of
from scripts.pretrain.eye import figures_of

COUNT, BATCH, SEED = 768, 128, 77


def drawn(captions: list[str], run: Path | None = None) -> Tensor:
    """Pictures (n, 3, 32, 32) of the base, or of what a run made of it, drawn as draft/shapes draws."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(CHECKPOINTS / "shapes-sd", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if run is not None:
        pipe.load_lora_weights(run / "adapter")
    images, options = [], {"num_inference_steps": 6, "guidance_scale": 1.0, "output_type": "pt"}
    for k in range(0, len(captions), BATCH):
        images.append(pipe(prompt=captions[k : k + BATCH], generator=generator(SEED, k), **options).images)
    return torch.cat(images)


def main() -> None:
    captions, runs = prompts("select", COUNT, SEED), [Path(name) for name in sys.argv[1:]]
    readers = {name: eye.load(CHECKPOINTS / name) for name in ("shapes-eye", "shapes-detector")}
    for run in (None, *runs):
        images = drawn(captions, run)
        for name, reader in readers.items():
            print(run or "base", name, figures_of(reader, images, captions))
    for name, reader in readers.items():
        print(name, counts_of(reader))


if __name__ == "__main__":
    main()
