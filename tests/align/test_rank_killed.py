"""One of two processes is killed: both and their launcher end within a minute, and the same command goes on from the
last checkpoint to the result of the run that nobody touched."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from align.hooks import metrics
from align.policy.lora import FILE_NAME
from align.run import Run

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")]


@pytest.fixture(scope="module")
def recipe(tiny_sd_factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    tiny_sd_factory().save_pretrained(folder / "model")
    recipe = {
        "model": {"name": "sd", "checkpoint": str(folder / "model")},
        "objective": {"name": "draft"},
        "data": {"name": "prompts", "prompts": ["a red star", "two cats", "x"]},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 3, "guidance_scale": 2.0, "last_k": 1},
        "train": {"num_updates": 150, "batch_size": 3, "checkpoint_every": 2, "num_processes": 2},
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    return file


def start(recipe, output):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "align"]
    return subprocess.Popen(
        [*command, "train", str(recipe), f"output={output}"],
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ranks(launcher):
    """{rank: id} of the launcher's workers."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            words = (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == launcher.pid:
            found |= {int(word[5:]): int(place.name) for word in words if word.startswith(b"RANK=")}
    return found


def alive(process):
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def num_updates(output):
    return len(metrics.read(output / metrics.FILE_NAME)) if (output / metrics.FILE_NAME).is_file() else 0


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "run"
    process = start(recipe, output)
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 0, said[-3000:]
    return Run(output)


@pytest.mark.parametrize("rank", [0, 1])
def test_all_end_within_a_minute_and_the_run_goes_on(recipe, whole, tmp_path, rank):
    output = tmp_path / "run"
    launcher = start(recipe, output)
    deadline = time.monotonic() + 200
    while num_updates(output) < 5 and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = ranks(launcher)
    assert sorted(workers) == [0, 1] and 5 <= num_updates(output) < 150
    os.kill(workers[rank], signal.SIGKILL)
    killed = time.monotonic()
    said = launcher.communicate(timeout=60)[0]
    assert launcher.returncode not in (0, None), "the launcher does not say that all is well"
    while any(map(alive, workers.values())):
        assert time.monotonic() < killed + 60, "a process is left"
        time.sleep(0.1)
    print(f"rank {rank}: all ended after {time.monotonic() - killed:.1f} s\n{said[-2500:]}")
    again = start(recipe, output)
    said = again.communicate(timeout=400)[0]
    assert again.returncode == 0, said[-3000:]
    assert "going on from" in said
    numbers = [[{k: v for k, v in r.items() if k != "seconds"} for r in run.metrics] for run in (whole, Run(output))]
    assert numbers[0] == numbers[1] and len(numbers[0]) == 150
    first, second = (load_file(run.output / "adapter" / FILE_NAME) for run in (whole, Run(output)))
    assert all((first[name] == second[name]).all() for name in first)
