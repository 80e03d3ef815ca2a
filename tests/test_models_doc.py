"""docs/develop/families.md: the family that it shows is one, and gives what Stable Diffusion's own gives."""

import re
from pathlib import Path

import torch
from tiny_families import sd

from align.models.sd import SDConfig, StableDiffusion
from align.registry import MODELS

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "develop" / "families.md").read_text(encoding="utf-8")
TABLE = (DOCS / "models" / "index.md").read_text(encoding="utf-8")


def test_the_family_shown_works_from_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1], encoding="utf-8")
    family = MODELS.get(f"{path}:Mine")
    pipeline = sd.build(StableDiffusion.published[0])
    models = [
        family(family.Config(checkpoint="tiny"), pipeline),
        StableDiffusion(SDConfig(checkpoint="tiny"), pipeline),
    ]
    z = torch.randn(1, *models[0].latent_shape())
    outs = [model.denoiser()(z, torch.tensor(0.5), model.text.encode(["a star"])) for model in models]
    assert torch.equal(*outs) and models[0].image_size == models[1].image_size


def test_the_table_names_every_family():
    assert set(re.findall(r"^\| `(\w+)` \|", TABLE, re.MULTILINE)) == set(MODELS.names())
