"""One of two processes is killed: both and their launcher end within a minute, and the same command goes on from the
last checkpoint to the result of a run of one process that nobody touched."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import align
from align.hooks import metrics
from align.policy.lora import FILE_NAME
from align.run import Run

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")]


SLOW = """import time

def slow(images, prompts):
    time.sleep(0.3)  # so that a kill falls into the run on a fast machine too
    return images.mean((1, 2, 3))
"""


@pytest.fixture
def recipe(tiny_sd_factory, tmp_path):
    tiny_sd_factory().save_pretrained(tmp_path / "model")
    (tmp_path / "slow.py").write_text(SLOW)
    return {
        "model": {"name": "sd", "checkpoint": str(tmp_path / "model")},
        "objective": {"name": "draft"},
        "data": {"name": "prompts", "prompts": ["a red star", "two cats", "x"]},
        "rewards": {"slow": {"name": "python", "function": f"{tmp_path / 'slow.py'}:slow"}},
        "sampling": {"num_steps": 2, "guidance_scale": 1.0, "last_k": 1},
        "optim": {"algorithm": "sgd", "lr": 1.0},
        "train": {"num_updates": 9, "batch_size": 3, "checkpoint_every": 1},
    }


CONFIG = "recipes/accelerate/multi_gpu.yaml"  # on the CPU here, by ACCELERATE_USE_CPU
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node=2"],
    "accelerate launch": ["accelerate.commands.launch", "--config_file", CONFIG, "--main_process_port", "0"],
}


@contextmanager
def started(launcher, file, output):
    """The launcher of two processes; nothing of it is left behind."""
    words = ["train", str(file), "train.num_processes=2", f"output={output}"]
    process = subprocess.Popen(
        [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "align", *words],
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        for one in (*ranks(process).values(), process.pid):
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)


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


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("by", LAUNCHERS)
def test_all_end_within_a_minute_and_the_same_command_goes_on(recipe, tmp_path, capsys, by):
    output, file = tmp_path / "run", tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    for rank, after in ((1, 3), (0, 6)):
        with started(by, file, output) as launcher:
            deadline = time.monotonic() + 400
            while num_updates(output) < after and launcher.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            workers = ranks(launcher)
            assert sorted(workers) == [0, 1] and num_updates(output) < 9, "the kill came too late"
            os.kill(workers[rank], signal.SIGKILL)
            killed = time.monotonic()
            said = launcher.communicate(timeout=60)[0]
            assert launcher.returncode not in (0, None), "the launcher does not say that all is well"
            while any(map(alive, workers.values())):
                assert time.monotonic() < killed + 60, "a process is left"
                time.sleep(0.1)
            with capsys.disabled():
                print(f"\n{by}: process {rank} killed at update {num_updates(output)}, all ended after", end=" ")
                print(f"{time.monotonic() - killed:.1f} s")
    with started(by, file, output) as launcher:
        said = launcher.communicate(timeout=600)[0]
        assert launcher.returncode == 0, said[-3000:]
    assert "going on from" in said
    one, two = align.train(recipe, output=str(tmp_path / "one")), Run(output)
    assert [record["step"] for record in two.metrics] == list(range(1, 10))
    for mine, alone in zip(two.metrics, one.metrics, strict=True):
        assert mine["reward/total"] == pytest.approx(alone["reward/total"], rel=1e-5)
    first, second = (load_file(run.output / "adapter" / FILE_NAME) for run in (one, two))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-5, atol=1e-6)
