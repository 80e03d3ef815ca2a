"""The command: its files, its last words, its mistakes, and the same numbers on two processes."""

import csv
import json
import os
import signal

import pytest
from evaluate_toys import make_runs
from two_processes import together
from typer.testing import CliRunner

from align.commands.app import app


@pytest.fixture(scope="module")
def runs(tiny_sd_factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_runs(tiny_sd_factory(), folder)
    return folder


def test_the_command(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", str(runs / "one"), "--prompts", str(runs / "prompts.csv"), "-n", "3", "--images", "1"]
    done = CliRunner().invoke(app, [*words, "--reward", "brightness", "sharp=sharpness", "--strengths", "0,1"])
    assert done.exit_code == 0, done.output
    assert "base: 3 of 3 prompts to do" in done.output and "one x 1:" in done.output
    assert "change +0.0000 [too few for an interval, below 4]  the same on all" in done.output
    assert done.output.rstrip().endswith("page  evaluation/one-on-prompts/evaluation.html")
    found = json.loads((tmp_path / "evaluation" / "one-on-prompts" / "evaluation.json").read_text())
    assert list(found["baseline"]["scores"]) == ["brightness", "sharp"] and found["num_images"] == 1
    again = CliRunner().invoke(app, [*words, "--reward", "brightness", "sharp=sharpness", "--strengths", "0,1"])
    assert again.exit_code == 0 and "to do" not in again.output
    into = CliRunner().invoke(app, [*words, "--reward", "brightness", "-o", str(runs / "one")])
    assert into.exit_code == 2 and "one: is a run's folder. Choose another, such as" in into.stderr
    assert not (runs / "one" / "plan.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "what is to be evaluated"),
        (["nowhere"], "there is no adapter"),
        (["RUNS/one", "--prompts", "nowhere.txt"], "--prompts nowhere.txt: cannot be read"),
        (["RUNS/one", "--strengths", "a"], "--strengths a: is no list of numbers"),
        (["RUNS/one", "--reward", "brightnes"], "brightness"),
        (["RUNS/one", "--output", "RUNS/prompts.csv"], "and it is no folder"),
        (["RUNS/one", "--reward", "judge"], "5 prompts of the recipe: reward judge cannot score"),
        (["RUNS/one", "--benchmark", "shapes:report", "--reward", "ocr"], "the prompts of shapes:report: reward ocr"),
        (["RUNS/one", "--prompts", "parti"], "HF_HUB_OFFLINE forbids"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(runs, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = CliRunner().invoke(app, ["evaluate", *(word.replace("RUNS", str(runs)) for word in words)])
    assert done.exit_code == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "evaluation").exists()


def test_no_evaluation_takes_the_place_of_another(runs, tmp_path, monkeypatch):
    """More prompts, arms or judges go on in the folder; what would lose some gets another, and draws nothing twice."""
    monkeypatch.chdir(tmp_path)

    def done(*words: str, n: int = 2, run: str = "one") -> tuple[str, str]:
        prompts = ["--prompts", str(runs / "prompts.csv"), "-n", str(n), "--images", "1", "--batch-size", "2"]
        found = CliRunner().invoke(app, ["evaluate", str(runs / run), *prompts, *words])
        assert found.exit_code in (0, 2), found.output
        return (found.output.rstrip().rpartition("page  ")[2].removesuffix("/evaluation.html"), found.output)

    first, _ = done("--reward", "brightness")
    assert first == "evaluation/one-on-prompts"
    assert (
        done("--reward", "brightness", "sharpness")[0] == done("--reward", "brightness", "sharpness", n=4)[0] == first
    )
    kept = (tmp_path / first / "evaluation.json").read_bytes()
    other, _ = done("--reward", "colourfulness")  # the page there has two judges, of four prompts
    assert other == f"{first}-2"
    image = "images/base/0001-0.png"
    assert (tmp_path / other / image).samefile(tmp_path / first / image), "what is there is not drawn again"
    assert done("--reward", "brightness", "--set", "train.seed=9")[0] == f"{first}-3"
    assert done("--reward", "brightness", run="two")[0] == "evaluation/two-on-prompts"
    chosen = [done("best-of:2", "--reward", "sharpness")[0] for _ in range(2)]
    assert len(set(chosen)) == 1, "the same again"
    other_choice = done("best-of:2", "--reward", "sharpness", "--set", "rewards.brightness.weight=-1")[0]
    assert other_choice not in chosen, "the noise that other rewards choose is another"
    assert (tmp_path / first / "evaluation.json").read_bytes() == kept
    refused = done("--reward", "brightness", "--set", "train.seed=8", "-o", first)[1]
    assert f"--output {first}: holds an evaluation of 4 prompts with other seed, which this one would" in refused
    assert done("--reward", "colourfulness", "-o", first)[0] == first


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interruption_has_its_exit_code_and_says_how_to_go_on(runs, tmp_path, monkeypatch, name, code):
    monkeypatch.chdir(tmp_path)

    def make(self, arm, interrupt, done):
        os.kill(os.getpid(), signal.Signals[name])
        interrupt.check()

    monkeypatch.setattr("align.evaluation.run.Session._make", make)
    done = CliRunner().invoke(app, ["evaluate", str(runs / "one")])
    assert done.exit_code == code and f"{name}: what is finished is kept; the same command goes on" in done.output


def launched(runs, output, num_processes):
    """evaluation.json and the rows of scores.csv, of an adapter and two noise methods on so many processes."""
    words = [str(runs / "one"), "best-of:2", "reno:2", "--prompts", str(runs / "prompts.csv"), "-o", str(output)]
    words = ["evaluate", *words, "--images", "1", "--batch", "2", "--set", "optim.lr=1"]
    if num_processes == 1:
        assert (done := CliRunner().invoke(app, words)).exit_code == 0, done.output
    else:
        together("-m", "align", *words, num_processes=num_processes)
    rows = list(csv.DictReader((output / "scores.csv").open()))
    return json.loads((output / "evaluation.json").read_text()), rows


def test_two_processes_find_what_one_finds(runs, tmp_path):
    one, rows = launched(runs, tmp_path / "one", 1)
    two, others = launched(runs, tmp_path / "two", 2)
    assert (one.pop("num_processes"), two.pop("num_processes")) == (1, 2)
    assert len(rows) == 4 * 5
    for mine, other in zip(rows, others, strict=True):
        if mine["arm"].startswith("ReNO"):  # optimised in batches that the processes cut, so to rounding
            assert float(mine["brightness"]) == pytest.approx(float(other["brightness"]), abs=1e-4)
        else:
            assert mine == other
    assert one["arms"][:2] == two["arms"][:2] and one["baseline"] == two["baseline"]
