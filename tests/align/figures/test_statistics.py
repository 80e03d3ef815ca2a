"""Intervals and comparisons against normal theory, where it is exact enough."""

import pytest
import torch

from align.figures.statistics import better, compare, interval


def test_the_interval_is_that_of_normal_theory_for_many_values():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 5
    found, half = interval(values), 1.96 * float(values.std()) / 2000**0.5
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.low == pytest.approx(found.mean - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.1 * half)


def test_the_interval_covers_the_truth_in_nineteen_of_twenty_samples():
    generator = torch.Generator().manual_seed(1)
    samples = torch.rand(100, 60, generator=generator)
    covered = sum(found.low <= 0.5 <= found.high for found in map(interval, samples))
    assert 89 <= covered <= 99  # 95 expected, give or take 2.2


def test_a_comparison_pairs_its_prompts():
    generator = torch.Generator().manual_seed(2)
    before = 10 * torch.randn(300, generator=generator)  # prompts differ far more than training changes them
    after = before + 0.5 + 0.1 * torch.randn(300, generator=generator)
    found = compare(before, after)
    assert 0.47 < found.difference.low < 0.5 < found.difference.high < 0.53
    assert found.after.low < found.before.high  # unpaired, nothing would be seen
    assert found.std_before == pytest.approx(float(before.std(correction=0)))
    assert found.num_prompts == 300


def test_ties_count_half_and_nothing_changed_is_nothing():
    found = compare(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 1.0, 4.0]))
    assert found.win_rate == 0.5 and better(found) == "better on 25 %, worse on 25 %"
    same = compare(torch.arange(5.0), torch.arange(5.0))
    assert (same.difference.low, same.difference.mean, same.difference.high, same.win_rate) == (0, 0, 0, 0.5)
    older = found.model_copy(update={"ties": None})
    assert (found.shares(), older.shares()) == ("25, 25 %", "50 %") and better(older) == "better on 50 %"
    assert better(same) == "the same on all"
