"""Whole runs under the guard, on a tiny random Stable Diffusion: what is written, and that resuming changes nothing."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from two_processes import together

import align
from align.policy import lora
from align.run import Run

WORKER = Path(__file__).parents[1] / "preference_worker.py"

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


def close(mine, theirs):
    """Words alike, numbers to the rounding of two ways to add them."""
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        assert value == (
            pytest.approx(theirs[key], rel=1e-3, abs=1e-4) if isinstance(value, float | dict) else theirs[key]
        )


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
    assert timeless(part.metrics) == timeless(whole.metrics), "the record of all that led to its adapter"
    assert result(part) == result(whole)


def test_the_best_is_swept_and_the_recommendation_is_in_the_summary_and_the_report(recipe):
    recipe["rewards"] = {"dull": {"name": "brightness", "weight": -1.0}}
    recipe["hooks"]["guard"]["prompts"] = [*PROMPTS, "a b", "c d"]
    recipe["evaluate"] = {"prompts": ["u", "v"], "num_prompts": 2, "num_pictures": 2}
    run = align.train(recipe, {"train.num_updates": 2})
    found = run.report.findings["guard"]
    assert [entry["strength"] for entry in found["sweep"]] == [0.5, 1.0]
    assert found["best_update"] == run.report.chosen_update > 0
    scores = {entry["strength"]: entry["score"] for entry in found["sweep"]}
    assert found["recommended_strength"] in scores and found["best_score"] > 0 and found["sweep_prompts"] == 4
    assert found["gain"]["mean"] > 0 and run.report.strength == found["recommended_strength"]
    assert f"At strength {run.report.strength:g}, on prompts" in (run.output / "adapter" / "README.md").read_text()
    page = (run.output / "report.html").read_text()
    assert f"recommended: {found['recommended_strength']:g}" in page
    assert json.loads((run.output / "summary.json").read_text())["hardware"]


def test_two_processes_guard_the_run_of_one(recipe, tmp_path):
    """One run that the guard ends and one that it lets go on and sweeps, 3 held-out prompts over 2 processes."""
    recipe["hooks"]["guard"] |= {"prompts": PROMPTS[:3], "num_prompts": 3}
    recipe["optim"] = {"algorithm": "sgd", "lr": 2.0}  # Adam would blow up the rounding of gradients that are almost 0
    kept = recipe | {"rewards": {"dull": {"name": "brightness", "weight": -1.0}}}
    recipes = {"ended": recipe, "kept": kept | {"train": recipe["train"] | {"num_updates": 2}}}
    (tmp_path / "recipes.json").write_text(json.dumps(recipes))
    together(WORKER, tmp_path / "recipes.json", tmp_path / "two")
    for name, settings in recipes.items():
        one, two = align.train(settings, output=str(tmp_path / "one" / name)), Run(tmp_path / "two" / name)
        assert (one.report.num_processes, two.report.num_processes) == (1, 2)
        assert (one.report.num_updates, one.report.chosen_update) == (two.report.num_updates, two.report.chosen_update)
        guards = [[{k: v for k, v in r.items() if k.startswith("guard/")} for r in run.metrics] for run in (one, two)]
        measured = [[r for r in rows if "guard/score" in r] for rows in guards]
        assert len(measured[0]) == len(measured[1]) > 1
        for mine, theirs in zip(*measured, strict=True):
            close(mine, theirs)
        sweeps = [run.report.findings["guard"].get("sweep") or [] for run in (one, two)]
        assert len(sweeps[0]) == len(sweeps[1]) == (2 if name == "kept" else 0)
        for mine, theirs in zip(*sweeps, strict=True):
            close(mine, theirs)
        tensors = [load_file(run.output / "adapter" / lora.FILE_NAME) for run in (one, two)]
        for key, tensor in tensors[0].items():
            assert tensor.allclose(tensors[1][key], rtol=1e-3, atol=1e-5)
