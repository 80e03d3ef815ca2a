"""Methods with an aim of their own: what is read, the bias by hand, and the page; equal proxy; equal network calls."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from align.config import load_recipe
from align.training.evaluate import FOLDER, SCORES
from scripts.comparison import aims, aims_page, equal
from scripts.comparison.methods import AIMS, CALLS, EACH, EQUAL, GRADIENTS


def test_the_bias_is_the_mean_over_pairs():
    """Of two colours with a half each: 8 pairs of a half with nothing among 15, and one of two halves."""
    shown = [["circle", "red", "small"], ["circle", "blue"], ["star", None], [None, None, None]]
    found = aims_page.shares(shown)
    assert sum(found) == pytest.approx(1) and max(found) == 0.5
    assert aims_page.bias(found) == pytest.approx(8 * 0.5 / 15)
    assert aims_page.bias([1 / 6] * 6) == 0.0


def test_equal_shares_have_a_bias_when_few_are_drawn():
    """A difference of two shares is normal with variance 2/(6 n): its mean length is sqrt(2/pi) of the deviation."""
    assert aims_page.floor(1000, draws=500) == pytest.approx((2 / 3.14159) ** 0.5 * (1 / 3000) ** 0.5, rel=0.05)


def _object(shape: str, colour: str | None, radius: float, size: str) -> SimpleNamespace:
    return SimpleNamespace(shape=shape, colour=colour, radius=radius, size=size)


def test_what_is_read_is_the_largest_object():
    reading = SimpleNamespace(objects=(_object("star", "red", 2, "small"), _object("circle", None, 5, "large")))
    assert aims.circle(reading) == ["circle", None, "large"] and aims.star(reading) and aims.large(reading)
    nothing = SimpleNamespace(objects=())
    assert aims.circle(nothing) == [None, None, None] and not aims.star(nothing) and not aims.large(nothing)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """unlearn on two seeds: 80 % shown before, 10 % after; the judge of what stays 0.5 to 1.0."""

    def ended(folder: Path) -> list[SimpleNamespace]:
        if folder.name != "unlearn":
            return []
        for seed in (1, 2):
            path = folder / f"seed-{seed}"
            (path / FOLDER).mkdir(parents=True, exist_ok=True)
            told = {"before": {"judge": [1, 0, 1]}, "after": {"judge": [0, 1, 1]}}
            prompts = ["a star", "a circle", "a square"]
            (path / FOLDER / SCORES).write_text(json.dumps({"prompts": prompts, "scores": told}))
            shown = {"reference": [True] * 8 + [False] * 2, "train": [True] + [False] * 9}
            (path / aims.SHOWN).write_text(json.dumps(shown))
        return [SimpleNamespace(output=folder / f"seed-{seed}") for seed in (1, 2)]

    monkeypatch.setattr(aims_page, "ended", ended)
    return tmp_path


def test_the_page_says_what_went_and_what_stayed(runs):
    text = aims_page.write(runs, runs / "aims.md").read_text()
    assert "**Verdict.** unlearn: pictures with a star 80.0% to 10.0%, what stays +50.0 points.\n\n" in text
    assert "| shown | **0.800** (0.800 0.800) | **0.100** (0.100 0.100) | 0.12 | **+0.500** " in text
    assert "| 100.0% | 0.0% |" in text and "fairness:" not in text


def test_a_section_whose_runs_are_elsewhere_stays_byte_for_byte(runs):
    page = runs / "aims.md"
    other = '## srpo: "large" against "small"\n\n*Shown*: something; else.\n\n| a | b |\n|---|---|\n| 1 | x  |  |\n'
    gone = '## unlearn: "star"\n\nwhat was measured before\n\n'
    said = "srpo: large ones where no size is asked 56.6% to 94.1%, what stays -24.0 points"
    page.write_text(f"# Aims\n\n**Verdict.** unlearn: nothing;\n{said}.\n\nWritten.\n\n{gone}{other}")
    text = aims_page.write(runs, page).read_text()
    assert text.endswith(f"\n\n{other}") and "before" not in text
    assert f"**Verdict.** unlearn: pictures with a star 80.0% to 10.0%, what stays +50.0 points;\n{said}.\n\n" in text
    assert text.count("## ") == 2 and "| 100.0% | 0.0% |\n\n## srpo" in text
    assert aims_page.write(runs, page).read_text() == text


def test_the_share_of_large_ones_and_how_far_it_is_from_what_was_asked(tmp_path, monkeypatch):
    recipe = load_recipe(AIMS["fairness"].recipe)
    assert recipe.objective.attributes["a large circle"] == aims_page.TARGET
    shown = {"reference": [["circle", "red", "large"], ["star", "red", "small"]] * 2}
    shown["train"] = [["circle", "red", "large"]] * 3 + [[None, None, None]]
    monkeypatch.setattr(aims_page, "_shown", lambda run: shown)
    monkeypatch.setattr(aims_page, "_change", lambda run, chosen: 0.01 if chosen is aims.sized else 1.0)
    verdict, text = aims_page._fairness(["a run"])
    assert verdict == "fairness: large circles 50.0% to 100.0% (asked: 75%), what stays +1.0 points"
    assert "| from the target | 0.250 | 0.250 | 1.00 |" in text and "| 50.0% | 75.0% |" in text


def test_draft_is_read_where_its_proxy_is_as_high():
    front = [{"proxy": 0.0, "diversity": 1.0}, {"proxy": 2.0, "diversity": 0.8}, {"proxy": 4.0, "diversity": 0.2}]
    there, reached = equal.at_proxy(front, 3.0)
    assert there == pytest.approx({"proxy": 3.0, "diversity": 0.5}) and reached
    assert equal.at_proxy(front, 5.0) == (front[-1], False)


def test_the_page_of_equal_proxy(tmp_path, monkeypatch):
    monkeypatch.setattr(equal.align, "Run", lambda path: SimpleNamespace(metrics=[{"seconds": 2.0}]))
    start = {"proxy": 0.0, "diversity": 0.5, "gold": 0.1, "judge": 0.2}
    for name, diversity in (("adjoint_matching", 0.45), ("draft", 0.4)):
        path = tmp_path / equal.FOLDER / name / "seed-1" / equal.FILE
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"0": start, "10": {**start, "proxy": 1.0, "diversity": diversity}}))
    text = equal.write(tmp_path, tmp_path / "equal.md").read_text()
    assert "it keeps 90.0% of the base's diversity and DRaFT\n80.0%" in text
    assert "| difference | | +0.100 (+0.100) | +0.000 (+0.000) |" in text


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_spend_as_many_network_calls(name):
    recipe = load_recipe(GRADIENTS[name].recipe, GRADIENTS[name].changes)
    assert recipe.train.num_updates * EACH[name] == pytest.approx(CALLS, rel=0.02)
    assert recipe.sampling.num_steps == 6 and recipe.train.batch_size == 32


def test_equal_arms_have_one_sampler_and_one_reward():
    one, other = (load_recipe(method.recipe, method.changes) for method in EQUAL.values())
    assert one.rewards == other.rewards and one.train.batch_size == other.train.batch_size
    for key in ("num_steps", "eta", "guidance_scale"):
        assert getattr(one.sampling, key) == getattr(other.sampling, key)
    for method in AIMS.values():
        load_recipe(method.recipe, method.changes)
