"""Guidance at equal calls: what an arm is held against, what is drawn, and what stands in the rows."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from align.sampling import SamplingConfig
from scripts.comparison import guidance


def test_every_arm_is_a_sampling_block_and_those_of_equal_calls_have_them():
    found = guidance.arms(3.0)
    for name, arm in found.items():
        block = SamplingConfig.model_validate(arm.sampling if not arm.plus_plus else arm.sampling | {"guidance": {}})
        full = block.how.calls_in_full(block.num_calls)
        if name.startswith(("the first", "refresh", "CFG", "dynamic", "none")):
            assert block.num_calls + full == 2 * guidance.EQUAL, name
    assert set(guidance.arms(3.0, Path("solver"))) - set(found) == {"learned, 5 steps"}


def test_lambda_is_a_scale_by_the_mean_over_steps():
    """sbar 4, 2, 0: 1/(1 - 1/2) and 1/(1 - 0), so lambda 1 is a scale of 1.5."""
    assert guidance.mean_gain(torch.tensor([4.0, 2.0, 0.0]), lambda t: (torch.ones(()), t)) == pytest.approx(1.5)


class Drawn:
    """In place of a model: x0 is what `step` says, an image's reward and gold its first value; a call a step."""

    def __init__(self, monkeypatch):
        self.calls = SimpleNamespace(forward=0)
        self.seen: list[tuple[int, int]] = []
        rewards = SimpleNamespace(rewards=dict.fromkeys(("judge", "gold", "pick"), None))
        studio = SimpleNamespace(policy=SimpleNamespace(calls=self.calls), rewards=rewards)
        monkeypatch.setattr(guidance, "Studio", lambda recipe: studio)
        monkeypatch.setattr(guidance, "Composite", lambda labels: lambda images, _: dict.fromkeys(labels, images[:, 0]))
        monkeypatch.setattr(guidance.Desk, "_images", self.images)
        self.clock = 0.0
        monkeypatch.setattr(guidance.time, "process_time", lambda: self.clock)

    def images(self, block, rows, candidate):
        full = block.how.calls_in_full(block.num_calls)
        self.calls.forward += len(rows) * (block.num_calls + full)
        self.clock += (3.2 if block.how.dynamic else 1.0) * len(rows)
        self.seen.append((block.num_steps, candidate))
        value = torch.tensor([float(row.index + (candidate == row.index)) for row in rows])
        return value.view(-1, 1, 1, 1), value[:, None]


def test_best_of_n_takes_what_is_liked_in_the_seconds_of_dynamic(tmp_path, monkeypatch):
    model = Drawn(monkeypatch)
    desk = guidance.Desk(tmp_path, 5, 3.0, batch=3)
    said = desk.measure(guidance.BEST)
    assert said["n"] == 3 and said["calls"] == 90  # 3.2 seconds for each 1, to the nearest
    assert said["judge"] == [1.0, 2.0, 3.0, 3.0, 4.0]  # candidate i is liked by row i, of the three there are
    drawn = len(model.seen)
    assert desk.measure(guidance.BEST) == said and len(model.seen) == drawn, "what is there is not drawn again"
    assert {path.stem for path in (tmp_path / "guidance").glob("*.json")} == {
        "plain-20",
        "plain-15",
        "dynamic-by-pick",
        "best-of-n-by-pick",
    }
    with pytest.raises(SystemExit, match="is of other prompts"):
        guidance.Desk(tmp_path, 4, 3.0).measure(guidance.BEST)


def test_an_arm_stands_beside_plain_guidance_of_as_many_calls(tmp_path):
    assert guidance.write(tmp_path, tmp_path / "guidance.md") is None
    even = [0.0, 1.0] * 20
    made = {"plain 12": (24.0, [0.0] * 40), "adaptive in x0": (23.7, even), "refresh, delta": (30.0, even)}
    for name, (calls, judge) in made.items():
        path = guidance.place(tmp_path, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        said = {"judge": judge, "gold": judge, "n": 1, "calls": calls, "seconds": 0.1, "w": 3.0, "distance": [0.5]}
        path.write_text(json.dumps(said))
    told = guidance.write(tmp_path, tmp_path / "guidance.md")
    assert told is not None
    text = told.read_text()
    assert "| adaptive in x0 | 23.7 | plain 12 | 50.0% | +50.0 [" in text and "| refresh, delta | 30.0 |  | 50" in text
    assert "| plain 12 | 24.0 |  | 0.0% |" in text and "passes more of adaptive in x0 (+50.0),\nand fewer of 0;" in text
    assert "refresh, delta" in (tmp_path / "img" / "guidance.svg").read_text()
