"""The rewards' benchmark: a line a reward, and its section of the page, whatever else stands there."""

import argparse
import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "reward_speed.py"
    spec = importlib.util.spec_from_file_location("bench_rewards", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_reward_is_a_line_of_figures(bench):
    args = argparse.Namespace(batch=2, size=32, repeats=1, device="cpu", dtype="float32")
    cells = [cell.strip() for cell in bench.measure("symmetry", args).strip("|").split("|")]
    assert cells[:2] == ["symmetry", "none"] and cells[4:] == ["-"] * 3
    assert all(float(cell) > 0 for cell in cells[2:4])


def test_networks_are_built_at_their_published_size(bench, monkeypatch):
    """On a smaller architecture here; the head's width follows it and no checkpoint is asked for."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    architecture = {"projection_dim": 24, "text_config": small, "vision_config": small | {"patch_size": 112}}
    settings, _, preprocess, network = bench.REAL["aesthetic"]
    monkeypatch.setitem(bench.REAL, "aesthetic", (settings, architecture, preprocess, network))
    args = argparse.Namespace(batch=1, size=256, repeats=1, device="cpu", dtype="bfloat16")
    cells = [cell.strip() for cell in bench.measure("aesthetic", args).strip("|").split("|")]
    assert cells[4].endswith("%") and all(float(cell) > 0 for cell in (*cells[2:4], *cells[5:]))


def test_only_its_own_section_is_replaced(bench, tmp_path):
    page = tmp_path / "performance.md"
    bench.write(page, "## Rewards\n\nfirst")
    assert page.read_text() == "# Performance\n\n## Rewards\n\nfirst\n"
    page.write_text("# Performance\n\n## Before\n\na\n\n## Rewards\n\nfirst\n\n## After\n\nb\n")
    bench.write(page, "## Rewards\n\nsecond")
    assert page.read_text() == "# Performance\n\n## Before\n\na\n\n## Rewards\n\nsecond\n\n## After\n\nb\n"
    page.write_text("# Performance\n\n## Before\n\na\n")
    bench.write(page, "## Rewards\n\nnew")
    assert page.read_text() == "# Performance\n\n## Before\n\na\n\n## Rewards\n\nnew\n"
