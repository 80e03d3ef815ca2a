"""Levers for equal seconds: how many updates an arm has, and what stands in the rows."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from align.config import load_recipe
from align.sampling.levers import FAST
from scripts.comparison import levers


@pytest.mark.parametrize("name", levers.ARMS)
def test_every_arm_is_the_recipe_with_one_lever(name):
    recipe = load_recipe(levers.RECIPE, (*levers.BASE, *levers.ARMS[name]))
    block = recipe.sampling.levers
    assert (block is None) == (name == "plain") and len(levers.ARMS[name]) == (name != "plain")
    if block is not None:
        others = {key for key in FAST if name == "fast"}  # which it stands for
        assert len(block.model_dump(exclude_defaults=True, exclude=others)) == 1


def test_fast_and_what_it_stands_for_are_arms():
    fast, refresh = (
        load_recipe(levers.RECIPE, (*levers.BASE, *levers.ARMS[name])).sampling.levers
        for name in ("fast", "guidance refresh")
    )
    assert fast.fast and fast.guidance == refresh.guidance == "refresh" and not refresh.fast


@pytest.fixture
def trained(monkeypatch):
    """{output folder: settings} of what was trained. Updates of plain take 2 s, of the others 1; the first 4 take 9."""
    seen: dict[Path, list[str]] = {}

    def train(recipe, settings):
        told = dict(setting.split("=", 1) for setting in settings)
        folder = Path(told["output"])
        seen[folder] = list(settings)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").touch()
        return run(folder)

    def run(folder):
        plain = folder.parent.name == "plain"
        updates = 30 if plain else 60
        metrics = [{"seconds": 9.0}] * 4 + [{"seconds": 2.0 if plain else 1.0}] * 4
        metrics = [{"panel/gold": 0.1, "panel/judge": 0.2}, *metrics] if folder.name != "pilot" else metrics
        metrics = [*metrics, {"panel/gold": 0.3 if plain else 0.5, "panel/judge": 0.5}]
        recipe = SimpleNamespace(
            hooks={"panel": SimpleNamespace(num_prompts=8)}, train=SimpleNamespace(num_updates=updates)
        )
        return SimpleNamespace(metrics=metrics, interrupted=False, recipe=recipe)

    monkeypatch.setattr(levers.align, "train", train)
    monkeypatch.setattr(levers, "Run", run)
    monkeypatch.setattr(levers.subprocess, "run", lambda command, **_: seen.setdefault(Path("asked"), command))
    return seen


def test_an_arm_has_the_updates_that_the_seconds_hold_and_a_row(trained, tmp_path):
    assert levers.write(tmp_path, tmp_path / "levers.md") is None
    levers.measure(tmp_path, tmp_path, [50, 51], seconds=60.0, prompts=8)
    assert "train.num_updates=30" in trained[levers.place(tmp_path, "plain") / "seed-50"]
    assert "train.num_updates=60" in trained[levers.place(tmp_path, "reuse 4") / "seed-51"]
    assert str(levers.place(tmp_path, "plain") / "seed-50" / "adapter") in trained[Path("asked")]
    (tmp_path / levers.FOLDER / levers.COSINES).write_text(json.dumps([{"lever": "bf16", "cosine": 0.99996}]))
    told = levers.write(tmp_path, tmp_path / "levers.md")
    assert told is not None
    text = told.read_text()
    assert "for 60 seconds" in text and "8 select prompts" in text and "| bf16 | 1.0000 |  |  |" in text
    assert "| plain | 2.00 | 30 | 44 | **+0.200** [+0.200, +0.200] (+0.200 +0.200) | **+0.273** [" in text
    assert "| **+0.300** [" in text
    assert "| fast | 1.00 | 60 |" in text and "\n*fast* is guidance refresh" in text
    assert "reuse 4 +0.600" in text and "2.20 times that of plain" in text
