"""A disk that is full ends a run with one line, wherever it happens; with room the same command ends as it should."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("disk_full_worker.py")
SIZES = {8: "samples/", 80: "checkpoint of update 2", 320: "checkpoint of update 4", 400: ".png", 460: ".json"}
"""KiB of the disk, and what does not fit on it: the run leaves 516."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_saved_is_lost_wherever_the_disk_is_full(tiny_sd_factory, tmp_path):
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no disks of one's own here")
    tiny_sd_factory().save_pretrained(tmp_path / "model")
    prompts = ["a red star", "two cats", "x", "y"]
    watched = {"prompts": prompts, "num_prompts": 2, "rewards": {"brightness": {}}}
    recipe = {
        "model": {"name": "sd", "checkpoint": str(tmp_path / "model")},
        "objective": {"name": "draft"},
        "data": {"name": "prompts", "prompts": prompts},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 2, "last_k": 1},
        "adapter": {"rank": 2},
        "train": {"num_updates": 4, "batch_size": 2, "checkpoint_every": 2, "export_every": 2},
        "hooks": {"panel": {**watched, "every": 2}, "samples": {"prompts": prompts, "num_images": 4, "every": 2}},
        "evaluate": {"prompts": prompts, "num_prompts": 4, "num_pictures": 4},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = subprocess.run(
        [unshare, "-rm", sys.executable, WORKER, tmp_path / "recipe.yaml", tmp_path, *map(str, SIZES)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=WORKER.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"size"')]
    assert [each["size"] for each in told] == list(SIZES)
    for each in told:
        assert each["code"] == 2 and not each["error"], each
        (line,) = each["said"].splitlines()[-1:]
        assert SIZES[each["size"]] in line or "cannot be written" in line, line
        assert "No space left on device" in line and "ake room" in line, line
        assert each["same"], each
