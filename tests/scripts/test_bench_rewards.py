"""The rewards' benchmark: a line a reward, and its table in the page, whatever else stands there."""

import argparse
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from align.registry import REWARDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench():
    path = ROOT / "scripts" / "bench" / "reward_speed.py"
    spec = importlib.util.spec_from_file_location("reward_speed", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
CLIP = {"projection_dim": 24, "text_config": SMALL, "vision_config": SMALL | {"patch_size": 112}}
SIGLIP = {"text_config": SMALL, "vision_config": SMALL | {"image_size": 384, "patch_size": 128}}
BLIP = {
    "text_config": SMALL | {"encoder_hidden_size": 32, "is_decoder": True},
    "vision_config": SMALL | {"image_size": 384, "patch_size": 128},
}
SIZES = {f"vision_{k}": v for k, v in SMALL.items()} | {f"text_{k}": v for k, v in SMALL.items()}
TINY = {
    "clip": CLIP,
    "aesthetic": CLIP,
    "pickscore": CLIP,
    "mps": CLIP,
    "siglip": SIGLIP,
    "aesthetic_v25": SIGLIP,
    "blip": BLIP,
    "dino": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 224, "patch_size": 112},
}


@pytest.fixture
def tiny(bench, monkeypatch, tmp_path):
    """The same rewards on small networks."""
    import open_clip

    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 112},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "tiny-bench.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    more = {"hpsv2": {"model": "tiny-bench"}, "mps": {"layers": 1, "heads": 2}}
    more |= {name: {"sizes": SIZES} for name in ("imagereward", "cyclereward")}
    for name, real in bench.REAL.items():
        small = dataclasses.replace(
            real, architecture=TINY.get(name, {}), settings={**real.settings, **more.get(name, {})}
        )
        monkeypatch.setitem(bench.REAL, name, small)
    return bench


def settings(**more):
    return argparse.Namespace(**{"batch": 2, "size": 256, "repeats": 1, "device": "cpu", "dtype": "float32"} | more)


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_learned_reward_is_measured(bench):
    slow = {
        "hpsv3",
        "vqascore",
        "unifiedreward",
        "detector",
        "ocr",
        "latent",
    }  # seconds an image, each asked its own way
    learned = {n for n in REWARDS.names() if REWARDS.config_class(n).card.size[0].isdigit()} - slow  # type: ignore[attr-defined]
    assert learned <= bench.REAL.keys()
    assert {name for name, real in bench.REAL.items() if real.network != "none"} == learned


LEARNED = ("pickscore hpsv2 mps clip aesthetic imagereward cyclereward blip siglip aesthetic_v25 dino lpips").split()


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_reward_is_a_line_of_figures(name, tiny):
    name_said, network, *figures = cells_of(tiny.measure(name, settings()))
    assert (name_said, network) == (name, tiny.REAL[name].network)
    if name == "lpips":  # takes the pixels as they are
        assert figures[1] == "-" and figures[3:] == ["-"] * 3
        figures = [figures[0], figures[2]]
    assert all(float(figure.removesuffix(" %")) > 0 for figure in figures)


@pytest.mark.parametrize("name", ["pickscore", "siglip", "hpsv2"])
def test_the_reference_path_makes_the_same_pixels(name, tiny):
    """Else it would be another work whose time is taken."""
    reward = tiny.build(name)
    images = torch.rand(1, 3, 300, 401, generator=torch.Generator().manual_seed(0)).mul(255).round().div(255)
    preprocess = tiny.holder(reward).preprocess
    theirs = tiny.reference_path(images, preprocess)
    torch.testing.assert_close(preprocess(images), theirs, rtol=0, atol=1e-5 if name == "hpsv2" else 1e-4)


def test_a_pixel_reward_has_no_reference_path(bench):
    cells = cells_of(bench.measure("symmetry", settings(size=32)))
    assert cells[:2] == ["symmetry", "none"] and cells[3] == "-" and cells[5:] == ["-"] * 3
    assert float(cells[2]) > 0 and float(cells[4]) > 0


@pytest.mark.parametrize(
    ("name", "kind", "part", "millions"),
    [
        ("pickscore", "CLIPModel", "", 986),
        ("mps", "CLIPModel", "vision_model", 631),
        ("clip", "CLIPModel", "", 428),
        ("aesthetic", "CLIPModel", "vision_model", 303),
        ("siglip", "SiglipModel", "vision_model", 428),
        ("blip", "BlipForImageTextRetrieval", "", 446),
        ("dino", "Dinov2Model", "", 87),
    ],
)
def test_networks_have_their_published_size(name, kind, part, millions, bench):
    import transformers

    network = getattr(transformers, kind)
    with torch.device("meta"):
        built = network(network.config_class(**bench.REAL[name].architecture))
    found = built.get_submodule(part) if part else built
    assert round(sum(p.numel() for p in found.parameters()) / 1e6) == millions


def test_lines_are_put_into_the_table_and_nothing_else_is_touched(bench, tmp_path):
    page = tmp_path / "performance.md"
    bench.write(page, "machine one.", "| clip | x | 1 |")
    begin = f"{bench.BEGIN}\nmachine one.\n\n| {' | '.join(bench.TITLES)} |\n"
    assert page.read_text().startswith(f"# Performance\n\n## Rewards\n\n{begin}|---|")
    assert page.read_text().endswith(f"|\n| clip | x | 1 |\n{bench.END}\n")
    page.write_text(page.read_text() + "\nWords.\n\n## After\n\nb\n")
    bench.write(page, "machine one.", "| pickscore | y | 2 |")
    bench.write(page, "machine one.", "| clip | x | 3 |")
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert rows[1:] == ["| pickscore | y | 2 |", "| clip | x | 3 |"], "in the order of the list"
    assert page.read_text().endswith(f"{bench.END}\n\nWords.\n\n## After\n\nb\n")
    bench.write(page, "machine two.", "| clip | x | 4 |")
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert rows[1:] == ["| clip | x | 4 |"] and "machine one" not in page.read_text(), "figures are of one machine"
