"""`align models`: what it lists, and sizes against counts that are known."""

import pytest

from align.commands import models as models_cli
from align.models.flux import Flux
from align.models.sd import StableDiffusion
from align.models.sd3 import StableDiffusion3
from align.models.sdxl import StableDiffusionXL
from align.registry import MODELS


def test_every_family_is_listed_with_checkpoint_scheduler_and_licence():
    text = models_cli.listing()
    for name in MODELS.names():
        assert any(line.split()[0] == name for line in text.splitlines() if line)
    line = next(line for line in text.splitlines() if "FLUX.1-schnell" in line)
    assert line.split() == [
        *("flux", "black-forest-labs/FLUX.1-schnell", "flow", "FlowMatchEulerDiscrete"),
        *("4", "x", "euler", "1", "apache-2.0"),
    ]
    assert " v  " in next(line for line in text.splitlines() if "stable-diffusion-2-1" in line)


def test_a_familys_details_name_targets_and_scheduler():
    text = models_cli.details("sd3")
    assert text.startswith("LoRA targets: to_q, ") and '"shift": 3.0' in text
    assert models_cli.details("auto") == ""


@pytest.mark.parametrize(
    ("published", "parameters"),
    [
        ((StableDiffusion, 0), 859_520_964),
        ((StableDiffusionXL, 0), 2_567_463_684),
        ((StableDiffusion3, 0), 2_028_328_000),
        ((Flux, 0), 11_901_408_320),
    ],
    ids=["sd15", "sdxl", "sd3", "flux"],
)
def test_networks_have_their_published_size(published, parameters):
    family, index = published
    found = models_cli.measure(family, family.published[index])
    assert found["parameters"] == pytest.approx(parameters, rel=1e-3)
    assert found["lora"] < 0.02 * parameters and found["flops"] > parameters
