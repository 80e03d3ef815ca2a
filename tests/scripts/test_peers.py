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


@pytest.fixture(scope="module")
def page():
    return runpy.run_path(str(SCRIPT.with_name("peer_page.py")), run_name="page")


def test_both_sides_are_told_the_same(script, tmp_path):
    mine, its = script["ours"](None, tmp_path, 3), script["theirs"](None, tmp_path, 3)
    assert {k: its[k] for k in mine["sampling"]} == mine["sampling"]
    assert {k: its[k] for k in mine["optim"]} == mine["optim"]
    assert (its["batch_size"], its["seed"]) == (mine["train"]["batch_size"], mine["train"]["seed"])
    assert (its["rank"], its["targets"]) == (mine["adapter"]["rank"], mine["adapter"]["targets"])
    assert its["prompts"] and Path(its["model"]).name == "shapes-sd"
    cheaper = script["ours"](None, tmp_path, 3, side="levers")
    assert cheaper["sampling"].pop("levers") and cheaper["sampling"] == mine["sampling"]
    assert cheaper["output"] != mine["output"] and cheaper["hooks"] != mine["hooks"]


def test_a_side_is_asked_for_a_turn_and_one_that_has_ended_is_said(script):
    echo = "import sys; print('noise'); print('{\"spent\": %s}' % input(), flush=True); input()"
    side = Popen([sys.executable, "-c", echo], stdin=PIPE, stdout=PIPE, text=True)
    assert script["asked"](side, 2.5) == {"spent": 2.5}
    side.stdin.close()
    gone = Popen([sys.executable, "-c", "pass"], stdin=PIPE, stdout=PIPE, text=True)
    gone.wait()
    with pytest.raises(SystemExit, match="ended with 0"):
        script["asked"](gone, 1.0)


def test_the_page_has_all_sides_and_seeds_and_a_curve_a_method(page, tmp_path):
    place = tmp_path / "page.md"
    place.write_text(f"before\n{page['BEGIN']}\nstale\n{page['END']}\nafter\n")
    rows = [
        {"method": "alignprop", "machine": "m.", "side": side, "seed": seed, "turn": turn, "updates": 4 * turn}
        | {"seconds": 10.0 * turn * each, "change": [0.1 * turn + 0.2 * seed, 0.0, 0.5]}
        for side, each in (("ours", 1), ("theirs", 2))
        for seed in (0, 1)
        for turn in (1, 2)
    ]
    del rows[-1]  # theirs was cut off in its last turn
    noise = {"method": "reno", "machine": "m.", "iterations": 5, "seconds": [2.0, 6.0]}
    noise |= {"base": [0.0] * 4, "ours": [1.0, 2.0, 1.0, 2.0], "theirs": [1.0] * 4}
    page["write"]([*rows, noise], place)
    text = place.read_text()
    ours = "| ours | 20 | 8 | 2.50 | +0.200 [+0.000, +0.500]; +0.400 [+0.000, +0.500] | +1.500 |"
    assert ours in text and "stale" not in text and text.endswith("after\n")
    assert "| ours | 5 | 0.50 | +1.500 [" in text and "| theirs | 5 | 1.50 | +1.000 [" in text
    found = page["curves"](rows)
    assert found["ours"] == [(0.0, 0.0), (10.0, pytest.approx(0.2)), (20.0, pytest.approx(0.3))]
    assert found["theirs"] == [(0.0, 0.0), (20.0, pytest.approx(0.2))], "a turn that not all seeds have is left out"
    for name in ("alignprop", "reno"):
        assert f"(img/peers-{name}.svg)" in text and "<path" in (tmp_path / f"img/peers-{name}.svg").read_text()
