"""Every command and code block of docs/howto/evaluate.md runs, on a tiny model in place of the named ones."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from align.commands.app import app
from align.evaluation.benchmarks import BENCHMARKS

ROOT = Path(__file__).parents[1]
DOC = (ROOT / "docs" / "howto" / "evaluate.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (?:align|accelerate launch .* -m align) (evaluate .*)$", DOC, re.MULTILINE)
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tiny_sd_factory, tmp_path_factory):
    """A folder in which the doc's runs are tiny ones."""
    import sys

    sys.path.insert(0, str(ROOT / "tests" / "align"))
    try:
        from evaluate_toys import make_runs
    finally:
        sys.path.pop(0)
    folder = tmp_path_factory.mktemp("doc")
    make_runs(tiny_sd_factory(), folder)
    (folder / "runs").mkdir()
    for name, run in (("draft-shapes", "one"), ("draft-shapes_clip", "two"), ("draft-sd15_hpsv2", "one")):
        (folder / "runs" / name).symlink_to(folder / run)
    return folder


def test_there_are_commands():
    assert len(COMMANDS) == 8 and [kind for kind, _ in BLOCKS] == ["python"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command(command, place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path))
    words = shlex.split(command.replace("reno/shapes", str(place / "one")))
    small = ["--images", "1", "-n", "2", "-o", str(tmp_path / "out"), "--set", "sampling.num_steps=1"]
    done = CliRunner().invoke(app, [*words, *small])
    if {"parti", "geneval2"} & {*words}:  # all but the network is there
        assert done.exit_code == 2 and "HF_HUB_OFFLINE forbids to fetch" in done.output
        return
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "evaluation.html").is_file()


def test_the_python_block(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    ((_, code),) = BLOCKS
    names: dict = {}
    exec(code.replace("count=48", "count=2"), names)
    assert [arm.label for arm in names["found"].arms] == [f"one x {s}" for s in ("0", "0.5", "1")]
    assert "one x 0 {'brightness': '0.0000 [too few for an interval, below 4]'" in capsys.readouterr().out


def test_the_table_of_benchmarks_is_right():
    rows = re.findall(r"^\| `([\w+-]+)` \| ([\d,]+) \| ([\w ]+) \|", DOC, re.MULTILINE)
    assert {name: int(count.replace(",", "")) for name, count, _ in rows} == {
        name: known.count for name, known in BENCHMARKS.items()
    }
