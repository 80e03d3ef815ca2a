"""Whole runs on a GPU: every method's first updates, small, on the embedded models."""

import math
from pathlib import Path

import pytest
import torch

import align

pytest.importorskip("diffusers")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
OTHERS = ("reno/", "spm/", "spo/shapes_spm")  # no adapter, or a judge to train first
NAMES = sorted(f"{path.parent.name}/{path.stem}" for path in RECIPES.glob("*/shapes*.yaml"))
SMALL = {
    "prompts": ["data.count=24"],
    "rollouts": ["data.num_prompts=2", "data.num_candidates=2", "data.gap=0"],
    "preferences": ["data.make.num_prompts=12", "data.make.num_images=2"],
    "labels": ["data.make.num_prompts=24", "data.make.num_images=2"],
    "online_pairs": [],
    "groups": [],
}
PLACES = {"preferences": "pairs", "labels": "labels"}


def small(recipe: str, folder: Path) -> align.Run:
    """Two updates of `recipe`, without hooks, and its report on 16 prompts."""
    said = align.load_recipe(recipe).dump()
    data = said["data"]["name"]
    pairs = [f"data.{PLACES[data]}={folder / 'data'}"] if data in PLACES else []
    report = ["evaluate.num_prompts=16"] if said["evaluate"] else []
    common = ["train.num_updates=2", "train.batch_size=8", "train.micro_batch_size=null", "train.checkpoint_every=1"]
    return align.train(recipe, [*SMALL[data], *pairs, *report, *common, "hooks={}", f"output={folder / 'run'}"])


@pytest.mark.parametrize("recipe", [name for name in NAMES if not name.startswith(OTHERS)])
def test_a_methods_first_updates(recipe, tmp_path):
    """What is counted on the CPU meets what is computed on the GPU in every one of them."""
    run = small(recipe, tmp_path)
    assert len(run.metrics) == 2
    assert all(math.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in run.metrics)
    assert run.report.scores and run.report.peak_gpu_mib
