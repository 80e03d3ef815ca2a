"""A run that is killed again and again, in its saves and its report too, ends as the unbroken one does, bit for bit."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pair_toys import write_pairs

from align.hooks.metrics import FILE_NAME as FILE
from align.hooks.metrics import read
from align.policy.lora import FILE_NAME
from align.run import Run
from align.training import checkpoint

ROOT = Path(__file__).parents[3]
MOMENTS = ["any"] * 6 + ["save"] * 4  # and one in the report, at the end
PATIENCE = 240.0  # seconds


@pytest.fixture
def recipe_file(tiny_sd_factory, tmp_path):
    tiny_sd_factory().save_pretrained(tmp_path / "model")
    prompts = ["a red star", "two cats", "x"]
    recipe = {
        "model": {"name": "sd", "checkpoint": str(tmp_path / "model")},
        "objective": {"name": "draft"},
        "data": {"name": "prompts", "prompts": prompts},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 3, "guidance_scale": 2.0, "last_k": 1},
        "optim": {"lr": 1e-3, "schedule": "cosine"},
        "train": {"num_updates": 150, "batch_size": 4, "checkpoint_every": 3, "ema": 0.9},
        "hooks": {"panel": {"prompts": prompts, "rewards": {"brightness": {}}, "best": "brightness", "every": 10}},
        "evaluate": {"prompts": [f"prompt {i}" for i in range(400)], "num_prompts": 400, "batch_size": 8},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    return file


def start(file, output):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-u", "-m", "align", "train", str(file), f"output={output}"]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def writing(output):
    return {path.name for path in (output / "checkpoints").glob(f"{checkpoint.TEMPORARY}*")}


def num_records(output):
    return len(read(output / FILE)) if (output / FILE).is_file() else 0


def kill_any(process, output, draw):
    """At a random time after the first new update."""
    seen, deadline = num_records(output), time.monotonic() + PATIENCE
    while num_records(output) <= seen and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 1.5))
    process.kill()
    process.wait()
    return f"update {num_records(output)}"


def kill_in_a_save(process, output, draw):
    """While the folder of a checkpoint is being written; it stays behind unfinished."""
    left, passed, deadline = writing(output), draw.randint(1, 4), time.monotonic() + PATIENCE
    seen = set()
    while time.monotonic() < deadline and process.poll() is None:
        seen |= (now := writing(output) - left)
        if now and len(seen) > passed:
            process.kill()
            process.wait()
            unfinished = writing(output) - left
            return f"save {unfinished.pop()}" if unfinished else "between saves"
    raise AssertionError("no save was seen")


def kill_in_the_report(process, output, draw):
    for line in process.stdout:
        if line.startswith("report:"):
            break
    time.sleep(draw.uniform(0.1, 0.5))
    process.kill()
    process.wait()
    return "after the report" if (output / "summary.json").exists() else "report"


def same_numbers(run):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in run.metrics]


PREFERENCES = {
    "diffusion_dpo": {"objective": {"name": "diffusion_dpo", "beta": 50}, "data": {"name": "preferences"}},
    "spo": {  # 8 transitions a rollout, 3 an update: kills fall within rollouts and on their borders
        "objective": {"name": "spo"},
        "data": {
            "name": "rollouts",
            "prompts": ["a", "b c", "x"],
            "num_prompts": 4,
            "num_candidates": 2,
            "first_step": 1,
            "gap": 0.2,
            "temperature": 6e-5,  # what the judge sees of so small a model
        },
        "rewards": {"brightness": {}},
    },
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", PREFERENCES)
def test_killed_preference_runs_end_as_the_unbroken_one(recipe_file, tmp_path, capsys, name):
    recipe = json.loads(recipe_file.read_text())
    recipe |= {"hooks": {}, "evaluate": None, "rewards": {}} | PREFERENCES[name]
    recipe["sampling"] = {"num_steps": 3, "guidance_scale": 2.0, "eta": 1.0}
    # far more updates than five runs reach before they are killed, on a fast machine too
    recipe["train"] |= {"num_updates": 300, "batch_size": 3, "checkpoint_every": 2}
    if name == "diffusion_dpo":
        write_pairs(tmp_path / "pairs", 7)
        recipe["data"] |= {"pairs": str(tmp_path / "pairs"), "cache": str(tmp_path / "cache")}
    recipe_file.write_text(json.dumps(recipe))
    draw = random.Random(time.time_ns())
    assert start(recipe_file, tmp_path / "whole").wait() == 0
    output = tmp_path / "killed"
    moments = draw.sample(["any"] * 3 + ["save"] * 2, 5)
    kinds = {"any": kill_any, "save": kill_in_a_save}
    met = [kinds[moment](start(recipe_file, output), output, draw) for moment in moments]
    assert start(recipe_file, output).wait() == 0
    with capsys.disabled():
        print(f"\n{name} killed at:", "; ".join(met))
    whole, killed = Run(tmp_path / "whole"), Run(output)
    assert same_numbers(killed) == same_numbers(whole) and len(whole.metrics) == 300
    files = [run.output / "adapter" / FILE_NAME for run in (whole, killed)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_runs_end_as_the_unbroken_one(recipe_file, tmp_path, capsys):
    draw = random.Random(time.time_ns())
    assert start(recipe_file, tmp_path / "whole").wait() == 0
    output = tmp_path / "killed"
    moments = [*draw.sample(MOMENTS, len(MOMENTS)), "report"]
    kinds = {"any": kill_any, "save": kill_in_a_save, "report": kill_in_the_report}
    met = [kinds[moment](start(recipe_file, output), output, draw) for moment in moments]
    assert start(recipe_file, output).wait() == 0
    with capsys.disabled():
        print("\nkilled at:", "; ".join(met))
    assert len(met) >= 10 and met[-1] == "report"
    assert sum(kill.startswith("save ") for kill in met) >= 3
    whole, killed = Run(tmp_path / "whole"), Run(output)
    assert same_numbers(killed) == same_numbers(whole)
    assert killed.report.scores == whole.report.scores
    assert killed.report.network_calls == whole.report.network_calls
    files = [run.output / "adapter" / FILE_NAME for run in (whole, killed)]
    assert files[0].read_bytes() == files[1].read_bytes()
