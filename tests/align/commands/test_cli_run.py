"""The command on whole, tiny runs: train, interrupt, resume, sample, doctor."""

import os
import shutil
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

import samplers
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
    there = str(folder / "run" / "checkpoints" / "step-000002")
    assert f"begins with its adapter by adapter.init={there}" in result.stderr
    call = ["train", str(folder / "tiny.yaml"), "optim.lr=0.2", f"output={folder / 'other'}", "--resume", there]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 2 and "or leave out --resume" in result.stderr and "set another" not in result.stderr


def test_doctor():
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "PROBLEM" not in result.stdout and "a training of two updates works" in result.stdout
    assert "tmp" not in result.stdout, "no file is named that is gone when the line is read"
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


def sampled(*args: object):
    return CliRunner().invoke(app, ["sample", *map(str, args)])


def test_a_second_call_leaves_the_pictures_of_the_first(folder, tmp_path):
    out, run = tmp_path / "out", folder / "run"
    first = sampled(run, "a", "-o", out)
    assert first.stdout.split() == [str(out / "0000.png")], first.output
    before = (out / "0000.png").read_bytes()
    assert sampled(run, "b", "-o", out).stdout.split() == [str(out / "0001.png")]
    assert sampled(run, "a", "-o", out, "--seed", "3").stdout.split() == [str(out / "0002.png")]
    assert sampled(folder / "tiny.yaml", "a", "-o", out).stdout.split() == [str(out / "0003.png")]
    assert sampled(run, "a", "-o", out).stdout.split() == [str(out / "0000.png")], "the same call, the same picture"
    assert (out / "0000.png").read_bytes() == before and len(list(out.glob("[!.]*"))) == 4


def test_a_runs_pictures_lie_in_it_by_strength_and_files_of_prompts_are_read(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n{"prompt": "y"}\n')
    said = sampled(folder / "run", "p.jsonl", "--strength", "0.5")
    assert said.stdout.split() == [str(folder / "run" / "images" / "strength-0.5" / f"000{i}.png") for i in (0, 1)]
    assert Image.open(said.stdout.split()[1]).info["prompt"] == "y"
    assert sampled(folder / "tiny.yaml", "x").stdout.split() == ["samples/tiny/0000.png"]
    assert sampled(folder / "run", "nowhere.txt").exit_code == 2


def test_a_run_without_its_adapter_is_not_drawn_by_the_base(folder, tmp_path):
    half = tmp_path / "half"
    half.mkdir()
    (half / "recipe.yaml").write_text((folder / "run" / "recipe.yaml").read_text())
    said = sampled(half, "a", "-o", tmp_path / "out")
    assert said.exit_code == 2 and "there is no adapter" in said.stderr and not (tmp_path / "out").exists()
    assert sampled(half, "a", "-o", tmp_path / "out", "--strength", "0").exit_code == 0
    shutil.copytree(folder / "run" / "checkpoints", half / "checkpoints")
    said = sampled(half, "a", "-o", tmp_path / "out")
    assert said.exit_code == 2 and "name its newest checkpoint" in said.stderr


def test_a_checkpoint_an_adapter_and_its_file_draw_what_the_run_draws(folder, tmp_path):
    run = folder / "run"
    (newest,) = sorted((run / "checkpoints").iterdir())[-1:]
    sources = [run, run / "adapter", run / "adapter" / "pytorch_lora_weights.safetensors", newest]
    for number, source in enumerate(sources):
        said = sampled(source, "a", "-o", tmp_path / str(number))
        assert said.exit_code == 0, said.output
    drawn = [pixels(tmp_path / str(number))[0] for number in range(len(sources))]
    assert all(np.array_equal(one, drawn[0]) for one in drawn)
    said = CliRunner().invoke(app, ["export", str(newest), "-f", "peft", "-o", str(tmp_path / "peft")])
    assert said.exit_code == 0, said.output


def test_the_default_noise_is_none_of_trainings(folder, tmp_path, monkeypatch):
    from align.commands import sample as module

    seeds = []
    monkeypatch.setattr(module, "Rng", lambda seed, rows: seeds.append(seed) or samplers.Rng(seed, rows))
    assert sampled(folder / "run", "a", "-o", tmp_path / "x").exit_code == 0
    assert seeds and seeds[0] != 0


@pytest.mark.parametrize("place", ["file/x", "/proc/nowhere"])
def test_a_place_that_cannot_be_written_is_said_before_anything_is_drawn(folder, tmp_path, monkeypatch, place):
    from align.commands import sample as module

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(module, "build", lambda *_: pytest.fail("built"))
    said = sampled(folder / "run", "a", "-o", tmp_path / place)
    assert said.exit_code == 2 and "--output" in said.stderr and len(said.stderr.splitlines()) == 1


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_strength_is_a_finite_number(folder, value):
    assert sampled(folder / "run", "a", f"--strength={value}").exit_code == 2


def test_printing_in_a_narrow_encoding_ends_no_command(folder, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "猫.png")
    command = [sys.executable, "-m", "align", "score", str(tmp_path / "猫.png"), "--reward", "brightness"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([*command, "--prompts", "猫 🐈"], env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert b"0.0000" in done.stdout
    done = subprocess.run([*command, "--prompts", b"caf\xe9"], env=environment, capture_output=True, timeout=300)
    assert done.returncode == 2 and b"is not UTF-8 text" in done.stderr and b"Traceback" not in done.stderr
