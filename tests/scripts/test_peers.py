"""Published code beside ours: both sides are told the same, they train in turns, and the page has what they reached."""

import runpy
import sys
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "peers.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT), run_name="peers")


def test_both_sides_are_told_the_same(script, tmp_path):
    mine, its = script["ours"]("alignprop", None, tmp_path, 3), script["theirs"]("alignprop", None, tmp_path, 3)
    assert {k: its[k] for k in mine["sampling"]} == mine["sampling"]
    assert {k: its[k] for k in mine["optim"]} == mine["optim"]
    assert (its["batch_size"], its["seed"]) == (mine["train"]["batch_size"], mine["train"]["seed"])
    assert (its["rank"], its["targets"]) == (mine["adapter"]["rank"], mine["adapter"]["targets"])
    assert its["prompts"] and Path(its["model"]).name == "shapes-sd"


def test_a_side_is_asked_for_a_turn_and_one_that_has_ended_is_said(script):
    echo = "import sys; print('noise'); print('{\"spent\": %s}' % input(), flush=True); input()"
    side = Popen([sys.executable, "-c", echo], stdin=PIPE, stdout=PIPE, text=True)
    assert script["asked"](side, 2.5) == {"spent": 2.5}
    side.stdin.close()
    gone = Popen([sys.executable, "-c", "pass"], stdin=PIPE, stdout=PIPE, text=True)
    gone.wait()
    with pytest.raises(SystemExit, match="ended with 0"):
        script["asked"](gone, 1.0)


def test_the_page_has_both_sides(script, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{script['BEGIN']}\nstale\n{script['END']}\nafter\n")
    row = {"method": "alignprop", "machine": "m", "gain": "0.1 [0, 0.2]", "updates": 4, "seconds": 10.0}
    noise = {"method": "reno", "machine": "m", "iterations": 5, "seconds": [2.0, 6.0]}
    noise |= {"base": [0.0] * 4, "ours": [1.0, 2.0, 1.0, 2.0], "theirs": [1.0] * 4}
    script["write"]([{**row, "side": "theirs"}, {**row, "side": "ours"}, noise], page)
    text = page.read_text()
    assert "| ours | 10 | 4 | 2.50 | 0.1 [0, 0.2] |" in text and "stale" not in text and text.endswith("after\n")
    assert "| ours | 0.50 | 1.5000 [" in text and "| theirs | 1.50 | 1.0000 [" in text
