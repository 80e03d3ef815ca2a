"""Whole runs under the guard, on a tiny random Stable Diffusion: what is written, and that resuming changes nothing."""

import json

import pytest

import align
from align import lora

PROMPTS = ["a red star", "two blue cats", "a square", "x above y"]


@pytest.fixture(scope="module")
def sd_folder(tiny_sd_factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guard") / "tiny-sd"
    tiny_sd_factory().save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(sd_folder, tmp_path):
    dark = {"dark": {"name": "python", "function": str(tmp_path / "mine.py") + ":darkness", "differentiable": False}}
    (tmp_path / "mine.py").write_text("def darkness(images, prompts):\n    return -images.mean((1, 2, 3))\n")
    guard = {"prompts": PROMPTS[:2], "rewards": dark, "num_prompts": 2, "every": 1, "drift": 1, "sweep": [0.5, 1.0]}
    return {
        "model": {"name": "sd", "checkpoint": str(sd_folder)},
        "objective": {"name": "draft"},
        "data": {"name": "prompts", "prompts": PROMPTS},
        "rewards": {"brightness": {}, "other": {"name": "brightness", "weight": -0.5}},
        "combine": {"normalise": "running", "gradients": "normalised"},
        "sampling": {"num_steps": 2, "guidance_scale": 1.0, "last_k": 1},
        "adapter": {"rank": 2},
        "optim": {"lr": 2e-2},
        "train": {"num_updates": 6, "batch_size": 2, "checkpoint_every": 1},
        "hooks": {"guard": {**guard, "max_shift": None, "min_diversity": None, "patience": 3}},
        "output": str(tmp_path / "run"),
    }


def timeless(records):
    return [{k: v for k, v in record.items() if "seconds" not in k} for record in records]


def result(run):
    found = run.report.model_dump()["findings"]
    found["guard"].pop("seconds")
    return (run.output / "adapter" / lora.FILE_NAME).read_bytes(), found, run.report.stopped


def test_the_guard_ends_a_run_that_its_reward_misleads_and_resuming_changes_nothing(recipe, tmp_path):
    """Trained to be bright, watched for darkness: the base stays the best, and after three measurements it is over."""
    whole = align.train(recipe)
    assert whole.report.num_updates == 3 and "3 measurements in a row fell behind" in str(whole.report.stopped)
    assert whole.report.chosen_update == 0
    assert {"guard/dark", "guard/score"} <= whole.metrics[0].keys()
    assert {"drift", "pixel_grad/other", "cosine/brightness/other"} <= whole.metrics[2].keys()
    assert whole.metrics[2]["cosine/brightness/other"] == pytest.approx(-1, abs=1e-5)

    again = align.train(recipe)  # it stays ended
    assert result(again) == result(whole) and timeless(again.metrics) == timeless(whole.metrics)

    first = whole.output / "checkpoints" / "step-000002"
    part = align.train(recipe, output=str(tmp_path / "part"), resume=str(first))
    assert timeless(part.metrics) == timeless(whole.metrics)[3:]
    assert result(part) == result(whole)


def test_the_best_is_swept_and_the_recommendation_is_in_the_summary_and_the_report(recipe):
    recipe["rewards"] = {"dull": {"name": "brightness", "weight": -1.0}}
    run = align.train(recipe, {"train.num_updates": 2})
    found = run.report.findings["guard"]
    assert [entry["strength"] for entry in found["sweep"]] == [0.5, 1.0]
    assert found["best_update"] == run.report.chosen_update > 0
    scores = {entry["strength"]: entry["score"] for entry in found["sweep"]}
    assert found["recommended_strength"] == max(scores, key=lambda s: scores[s])
    assert scores[1.0] == found["best_score"] > 0
    page = (run.output / "report.html").read_text()
    assert f"recommended: {found['recommended_strength']:g}" in page
    assert json.loads((run.output / "summary.json").read_text())["hardware"]
