"""The command on whole, tiny runs: train, interrupt, resume, sample, doctor."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from align.commands.app import app
from align.hooks.metrics import read

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_sd_factory) -> Path:
    """A tiny model, and a recipe on it whose adapter moves far in two updates."""
    folder = tmp_path_factory.mktemp("cli_run")
    tiny_sd_factory().save_pretrained(folder / "model")
    recipe = {
        "model": {"name": "sd", "checkpoint": str(folder / "model")},
        "objective": "draft",
        "data": {"name": "prompts", "prompts": ["a", "b"]},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 3},
        "optim": {"lr": 0.1},
        "train": {"num_updates": 2, "batch_size": 2},
        "output": str(folder / "run"),
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    result = CliRunner().invoke(app, ["train", str(folder / "tiny.yaml")])
    assert result.exit_code == 0, result.output
    return folder


def pixels(folder: Path) -> list[np.ndarray]:
    return [np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))]


def test_samples_with_and_without_the_adapter(folder, tmp_path):
    def draw(source: Path, name: str, *options: str) -> list[np.ndarray]:
        wanted = ["a", "b", "-n", "2", "-o", str(tmp_path / name)]
        result = CliRunner().invoke(app, ["sample", str(source), *wanted, *options])
        assert result.exit_code == 0, result.output
        assert len(result.stdout.split()) == 4
        return pixels(tmp_path / name)

    trained = draw(folder / "run", "trained")
    base = draw(folder / "tiny.yaml", "base")
    off = draw(folder / "run", "off", "--strength", "0")
    again = draw(folder / "run", "again")
    other = draw(folder / "run", "other", "--seed", "1")
    assert np.array_equal(base, off) and np.array_equal(trained, again)
    assert not np.array_equal(trained, base) and not np.array_equal(trained, other)
    assert Image.open(tmp_path / "trained" / "0002.png").info["prompt"] == "b"


def interrupted(folder: Path, output: Path, updates: int) -> str:
    """What a long training prints that gets Ctrl-C once its record has so many lines."""
    command = [sys.executable, "-m", "align", "train", str(folder / "tiny.yaml"), f"output={output}"]
    process = subprocess.Popen(
        [*command, "train.num_updates=100000"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = output / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.is_file() and metrics.read_text().count("\n") >= updates):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in errors
    assert "the same command goes on from there" in said
    return said


def test_ctrl_c_saves_and_ends_with_130_and_the_same_command_goes_on(folder, tmp_path):
    interrupted(folder, tmp_path / "run", 2)
    first = read(tmp_path / "run" / "metrics.jsonl")
    said = interrupted(folder, tmp_path / "run", len(first) + 2)
    assert f"after update {len(first)} of" in said
    both = read(tmp_path / "run" / "metrics.jsonl")
    assert both[: len(first)] == first and [record["step"] for record in both] == list(range(1, len(both) + 1))


def test_another_recipe_in_the_same_folder_is_refused(folder):
    result = CliRunner().invoke(app, ["train", str(folder / "tiny.yaml"), "optim.lr=0.2"])
    assert result.exit_code == 2 and "optim.lr: 0.1 -> 0.2" in result.stderr and "--resume never" in result.stderr


def test_doctor():
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "PROBLEM" not in result.stdout and "a training of two updates works" in result.stdout
    assert "torch  " in result.stdout and "optional bitsandbytes" in result.stdout


def test_doctor_says_what_fails(monkeypatch):
    import align.run

    def broken(*args, **kwargs):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(align.run, "train", broken)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "PROBLEM  a training of two updates fails: RuntimeError: no kernel image" in result.stdout


def test_the_shapes_commands_are_reached():
    result = CliRunner().invoke(app, ["shapes", "prompts", "--help"])
    assert result.exit_code == 0 and "align shapes prompts" in result.stdout
