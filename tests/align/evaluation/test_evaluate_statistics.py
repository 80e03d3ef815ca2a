"""Closed forms of paired statistics: win rate, intervals, several images a prompt, the front."""

import math

import pytest
import torch

from align.evaluation.statistics import front, gains, intervals, means
from align.figures.statistics import compare, paired


def test_with_one_image_a_prompt_it_is_the_comparison_of_a_run():
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(40, 1, generator=generator), torch.randn(40, 1, generator=generator) + 0.3
    found = gains({"a": before}, {"a": after})["a"]
    wanted = compare(before[:, 0], after[:, 0])
    for name in ("before", "after", "difference"):
        ours, theirs = getattr(found, name), getattr(wanted, name)
        assert ours.model_dump() == pytest.approx(theirs.model_dump(), abs=1e-9)
    assert found.win_rate == wanted.win_rate and found.num_prompts == 40
    assert found.std_before == pytest.approx(wanted.std_before)


def test_wins_are_counted_image_by_image_and_ties_half():
    before = torch.tensor([[0.0, 1.0], [2.0, 2.0], [0.0, 0.0]])
    after = torch.tensor([[1.0, 0.0], [2.0, 3.0], [5.0, 5.0]])
    found = gains({"a": before}, {"a": after})["a"]
    # wins 1 0 | half 1 | 1 1 -> per prompt 1/2, 3/4, 1
    assert found.win_rate == pytest.approx((0.5 + 0.75 + 1.0) / 3)
    assert found.difference.mean == pytest.approx((0.0 + 0.5 + 5.0) / 3)
    assert found.before.mean == pytest.approx((0.5 + 2.0 + 0.0) / 3)


def test_no_change_is_exactly_none():
    scores = torch.randn(17, 3, generator=torch.Generator().manual_seed(1))
    found = gains({"a": scores}, {"a": scores.clone()})["a"]
    assert (found.difference.mean, found.difference.low, found.difference.high) == (0.0, 0.0, 0.0)
    assert (found.wins.mean, found.wins.low, found.wins.high) == (0.5, 0.5, 0.5)


def test_the_same_change_everywhere_has_no_spread():
    before = torch.randn(9, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = gains({"a": before}, {"a": before + 0.25})["a"]
    for value in (found.difference.mean, found.difference.low, found.difference.high):
        assert value == pytest.approx(0.25, abs=1e-12)
    assert found.win_rate == 1.0 and 0.6 < found.wins.low < 0.7, "nine wins of nine are not certainty"
    assert found.p == pytest.approx(2**-8)


def test_the_interval_is_that_of_the_mean_over_prompts():
    """Of n values 0 or 1 with share p it is about p +- 1.96 sqrt(p (1 - p) / n); images of a prompt add no prompts."""
    n = 400
    values = (torch.arange(n) % 4 == 0).double()  # p = 1/4
    found = means({"a": values[:, None]})["a"]
    half = 1.96 * math.sqrt(0.25 * 0.75 / n)
    assert found.mean == 0.25
    assert found.low == pytest.approx(0.25 - half, abs=0.004) and found.high == pytest.approx(0.25 + half, abs=0.004)
    repeated = means({"a": values[:, None].expand(n, 10)})["a"]
    assert repeated == found, "ten equal images of a prompt say no more than one"


def test_columns_do_not_disturb_each_other():
    values = torch.randn(30, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for column, found in enumerate(intervals(values)):
        alone = paired(values[:, column])
        assert found.model_dump() == pytest.approx(alone.model_dump(), abs=1e-9)


def test_the_front_is_what_no_other_beats():
    points = [(0.0, 0.0), (1.0, 2.0), (2.0, 1.0), (3.0, 3.0), (1.0, 1.5), (4.0, 3.0)]
    assert front(points) == [0, 1, 3]
    assert front([(0.0, 1.0), (1.0, 0.0)]) == [0]
    assert front([]) == []
    for a, _ in enumerate(points):
        beaten = any(c <= points[a][0] and g >= points[a][1] and (c, g) != points[a] for c, g in points)
        assert beaten == (a not in front(points))
