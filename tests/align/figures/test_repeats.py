"""Prompts that stand in a list more than once: the mean is over images, and how sure it is goes by distinct prompts."""

import math

import pytest
import torch

from align.evaluation.statistics import gains, intervals, means
from align.figures.repeats import Repeats, repeats
from align.figures.statistics import chance, compare, interval, paired, rate
from align.shapes.prompts import prompts


def edges(found):
    return found.mean, found.low, found.high


def test_a_small_example_by_hand():
    """Prompts a a b c d; values 1 3 2 4 0, mean 2: residuals' sums 0, 0, 2, -2."""
    from scipy.stats import t

    values, asked = torch.tensor([1.0, 3.0, 2.0, 4.0, 0.0]), ["a", "a", "b", "c", "d"]
    found = Repeats(asked)
    assert len(found) == 4 and found.effective == pytest.approx(25 / 7) and found.freedom == pytest.approx(18 / 7)
    assert found.totals(values).tolist() == [4.0, 2.0, 4.0, 0.0]
    assert found.variance(values) == pytest.approx((4 / 0.8 + 4 / 0.8) / 25)
    half = t.ppf(0.975, 18 / 7) * math.sqrt(0.4)
    assert edges(interval(values, asked)) == pytest.approx((2.0, 2 - half, 2 + half))
    assert chance(values, asked) == pytest.approx(max(2 * t.sf(2 / math.sqrt(0.4), 18 / 7), 2**-2))


def test_as_many_images_of_each_prompt_are_the_prompts_means():
    """Rows of one prompt, wherever they stand, say what their mean says: the usual interval and p over prompts."""
    drawn = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.4
    asked = [prompt for _ in range(5) for prompt in range(12)]
    assert edges(interval(drawn.T.flatten(), asked)) == pytest.approx(edges(interval(drawn.mean(1))))
    assert chance(drawn.T.flatten(), asked) == pytest.approx(chance(drawn.mean(1)))
    said = (drawn > 0).double()
    assert edges(rate(said.T.reshape(-1, 1), asked)) == pytest.approx(edges(rate(said)))


def test_copies_say_no_more_than_one():
    scores, yes = torch.arange(10.0) - 3, (torch.arange(10) % 3 == 0).double()
    asked = [prompt for prompt in range(10) for _ in range(7)]
    copied = scores.repeat_interleave(7)
    assert edges(interval(copied, asked)) == pytest.approx(edges(interval(scores)))
    assert chance(torch.ones(70), asked) == 2**-9 and chance(torch.ones(70)) < 2**-60
    alone, many = rate(yes[:, None]), interval(yes.repeat_interleave(7), asked)
    assert many.low <= alone.low and many.high >= alone.high and many.mean == pytest.approx(alone.mean)
    alone, many = paired(yes), paired(yes.repeat_interleave(7), asked)
    assert many.low <= alone.low + 1e-12 and many.high >= alone.high - 1e-12 and many.mean == pytest.approx(alone.mean)
    assert edges(paired(torch.zeros(70), asked)) == (0.0, 0.0, 0.0) and chance(torch.zeros(70), asked) == 1.0


def test_below_four_distinct_prompts_there_is_no_interval():
    values, asked = torch.arange(30.0) % 2, [number % 3 for number in range(30)]
    for found in (interval(values, asked), interval(values + 0.5, asked), paired(values, asked)):
        assert found.low is None and found.high is None
    assert chance(values, asked) is None
    with pytest.raises(ValueError, match="3 prompts were given for 30 rows"):
        interval(values, [1, 2, 3])


def test_distinct_prompts_change_no_figure():
    generator = torch.Generator().manual_seed(1)
    asked = [f"prompt {number}" for number in range(40)]
    assert repeats(asked, 40) is None and repeats(None, 40) is None
    continuous, answers = torch.randn(2, 40, 2, generator=generator), torch.rand(2, 40, 2, generator=generator).round()
    for old, new in (continuous, answers):
        assert compare(old[:, 0], new[:, 0], asked) == compare(old[:, 0], new[:, 0])
        assert gains({"a": old}, {"a": new}, asked) == gains({"a": old}, {"a": new})
        assert means({"a": old}, asked) == means({"a": old}) and intervals(old, asked) == intervals(old)


def test_a_comparison_says_how_many_are_distinct():
    before = torch.arange(8.0)
    found = compare(before, before + 1, ["a", "b", "c", "d"] * 2)
    assert (found.num_prompts, found.num_distinct, found.asked()) == (8, 4, "8 images of 4")
    assert compare(before, before + 1).asked() == "8"
    assert found.model_copy(update={"num_distinct": None}).asked() == "8", "a run that has not counted them"
    gained = gains({"a": before[:, None]}, {"a": before[:, None] + 1}, ["a", "b", "c", "d"] * 2)["a"]
    assert gained.num_distinct == 4 and gained.wins.low < compare(before.sign(), before * 0 + 1).win_rate


LAYOUTS = {
    "report": prompts("report", 256),
    "even": [number for number in range(20) for _ in range(5)],
    "uneven": [*range(40), *[number for number in range(40, 52) for _ in range(5)]],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_intervals_of_repeated_prompts_cover_what_they_say(layout):
    """Half of a score's spread is its prompt's, or all of a rate's; taken as independent they cover far less."""
    generator, asked, turns = torch.Generator().manual_seed(4), LAYOUTS[layout], 600
    names = list(dict.fromkeys(asked))
    place = torch.tensor([names.index(one) for one in asked])
    of_prompts = torch.randn(turns, len(names), generator=generator)[:, place]
    drawn = (of_prompts + torch.randn(turns, len(asked), generator=generator)) / math.sqrt(2)
    found = {
        "mean": ([interval(row, asked) for row in drawn], [interval(row) for row in drawn]),
        "rate": ([interval(row, asked) for row in (drawn > 0).double()], None),
        "paired": ([paired(row.sign() * (row.abs() > 0.5), asked) for row in drawn], None),
    }
    for kind, (ours, naive) in found.items():
        truth = 0.5 if kind == "rate" else 0.0
        share = sum(one.low <= truth <= one.high for one in ours) / turns
        assert 0.92 <= share <= 0.98, (kind, share)
        if naive is not None:
            assert sum(one.low <= truth <= one.high for one in naive) / turns < 0.85
    false = sum((chance(row, asked) or 0) < 0.05 for row in drawn) / turns
    assert false <= 0.08
    assert sum((chance(row) or 0) < 0.05 for row in drawn) / turns > 0.15
