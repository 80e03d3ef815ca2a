"""Pairs made from a model and a judge."""

import json

import pytest
import torch
from PIL import Image

from align.config import load_recipe
from align.data._make_pairs import MakeConfig, compared, labelled
from align.data._pairs import read_pairs
from align.errors import UserError
from align.run import prepare


@pytest.fixture(scope="module")
def recipe(tiny_sd_factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("make")
    tiny_sd_factory().save_pretrained(folder / "model")
    return {
        "model": {"name": "sd", "checkpoint": str(folder / "model")},
        "objective": "diffusion_dpo",
        "data": {
            "name": "preferences",
            "pairs": str(folder / "pairs"),
            "make": {"prompts": ["a cat", "two", "x"], "num_images": 3, "rewards": {"brightness": {}}, "batch_size": 6},
        },
        "sampling": {"num_steps": 2, "guidance_scale": 2.0},
    }


def made(recipe, folder, **make):
    data = recipe["data"] | {"pairs": str(folder), "make": recipe["data"]["make"] | make}
    prepare(recipe | {"data": data}, pairs_only=True)
    return [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]


def brightness(file):
    red, green, blue = (sum(band.tobytes()) / 255 for band in Image.open(file).split())
    return (0.299 * red + 0.587 * green + 0.114 * blue) / (32 * 32)


def test_the_best_is_preferred_to_the_worst_and_all_pairs_are_all(recipe, tmp_path):
    best = made(recipe, tmp_path / "best")
    assert [r["prompt"] for r in best] == ["a cat", "two", "x"]
    for record in best:
        scores = [brightness(tmp_path / "best" / record[side]) for side in ("winner", "loser")]
        assert scores[0] - scores[1] == pytest.approx(record["margin"], abs=0.01)
        assert record["margin"] > 0
    every = made(recipe, tmp_path / "all", choose="all")
    assert len(every) == 9
    for i, record in enumerate(best):
        margins = [r["margin"] for r in every[3 * i : 3 * i + 3]]
        assert max(margins) == pytest.approx(record["margin"]), "the same images, the best against the worst among them"
    wide = made(recipe, tmp_path / "wide", choose="all", margin=sorted(r["margin"] for r in every)[4])
    assert len(wide) == 5
    assert len(read_pairs(tmp_path / "all")) == 9


def test_a_run_that_was_ended_goes_on_and_ends_the_same(recipe, tmp_path):
    whole = made(recipe, tmp_path / "whole")
    made(recipe, tmp_path / "ended")
    for name in ("pairs.jsonl", "parts/0000002.jsonl", "images/0000002-0.png"):
        (tmp_path / "ended" / name).unlink(missing_ok=True)
    kept = (tmp_path / "ended/parts/0000000.jsonl").stat().st_mtime_ns
    assert made(recipe, tmp_path / "ended") == whole
    assert (tmp_path / "ended/parts/0000000.jsonl").stat().st_mtime_ns == kept
    (tmp_path / "ended/pairs.jsonl").unlink()
    with pytest.raises(UserError, match="pairs of other settings"):
        made(recipe, tmp_path / "ended", num_images=2)
    noisy = recipe | {"sampling": recipe["sampling"] | {"noise_law": "cps"}}
    with pytest.raises(UserError, match=r"pairs of other settings.*sampling.noise_law"):
        made(noisy, tmp_path / "ended")


def test_labels_follow_bradley_and_terry():
    config = MakeConfig(prompts=["a"], rewards={"brightness": {}}, temperature=0.5)
    totals = torch.tensor([0.3, 0.0], dtype=torch.float64)
    labels = [labelled(config, totals, 0, 1, 0, prompt) for prompt in range(4000)]
    share = sum(label["winner"] == 0 for label in labels) / 4000
    assert share == pytest.approx(1 / (1 + 2.718281828 ** (-0.6)), abs=0.025)
    assert {label["margin"] for label in labels} == {0.3, -0.3}
    quiet = config.model_copy(update={"temperature": 0.0})
    assert labelled(quiet, totals, 1, 0, 0, 0) == {"winner": 0, "loser": 1, "margin": 0.3, "tie": False}


def test_ties_are_dropped_or_kept():
    config = MakeConfig(prompts=["a"], rewards={"brightness": {}})
    same = torch.ones(3, dtype=torch.float64)
    ((a, b),) = compared(config.choose, same)
    assert a != b and labelled(config, same, a, b, 0, 0) is None
    kept = labelled(config.model_copy(update={"ties": "keep", "margin": 0.1}), same, a, b, 0, 0)
    assert kept is not None and kept["tie"]


def test_pairs_that_are_there_are_held_against_the_recipe(recipe, tmp_path, capsys):
    """Of another data.make they are refused, also when all are there; of another seed or model that is said."""
    first = made(recipe, tmp_path / "pairs")
    with pytest.raises(UserError, match=r"other settings \(data\.make\.num_images"):
        made(recipe, tmp_path / "pairs", num_images=2)
    capsys.readouterr()
    assert made(recipe | {"train": {"seed": 3}}, tmp_path / "pairs") == first
    assert "were made with another train.seed, and are used as they are" in capsys.readouterr().out


def test_a_judge_whose_own_file_has_changed_is_another_judge(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def judge(images, prompts):\n    return images.mean((1, 2, 3))\n")
    own = {"rewards": {"own": {"name": "python", "function": "mine.py:judge"}}}
    made(recipe, tmp_path / "own", **own)
    made(recipe, tmp_path / "own", **own)
    (tmp_path / "mine.py").write_text("def judge(images, prompts):\n    return -images.mean((1, 2, 3))\n")
    with pytest.raises(UserError, match=r"other settings \(data\.make\.rewards, their code"):
        made(recipe, tmp_path / "own", **own)


def test_a_plan_needs_no_pairs(recipe):
    from align.plan import rehearse

    found = rehearse(load_recipe(recipe | {"train": {"batch_size": 4}}))
    assert found.rows == 4
    assert (found.calls.forward, found.calls.backward) == (16, 8), "policy and reference on winners and losers"


def test_data_without_pairs_is_refused(recipe):
    plain = recipe | {
        "data": {"name": "prompts", "prompts": ["a"]},
        "objective": "draft",
        "rewards": {"brightness": {}},
    }
    with pytest.raises(UserError, match="no pairs to prepare"):
        prepare(plain, pairs_only=True)
