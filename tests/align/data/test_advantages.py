"""Advantages: sums, invariances and the three ways to scale, on numbers made up here."""

import pytest
import torch

from align.data._advantages import CONSTANT, Running, advantages, without_contrast

GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
R = torch.tensor([1.0, 2.0, 4.0, 3.0, 0.0, 0.0, 1.0, 0.0, 5.0, 5.0, 5.0, 5.0])


def of(scores, normalise="global", weights=None, groups=GROUPS, clip=5.0, **running):
    scores = scores if isinstance(scores, dict) else {"r": scores}
    weights = weights or dict.fromkeys(scores, 1.0)
    return advantages(scores, weights, groups, normalise=normalise, clip=clip, **running)


def test_the_formulas():
    a = of(R)
    torch.testing.assert_close(a[:4], (R[:4].double() - 2.5) / (R.double().std(correction=0) + CONSTANT))
    b = of(R, "group")
    torch.testing.assert_close(b[4:8], (R[4:8].double() - 0.25) / (R[4:8].double().std(correction=0) + CONSTANT))


@pytest.mark.parametrize("normalise", ["global", "group"])
def test_they_sum_to_0_in_a_group_and_no_scale_or_shift_of_the_reward_changes_them(normalise):
    a = of(R, normalise)
    sums = torch.zeros(3, dtype=torch.float64).index_add(0, GROUPS, a)
    torch.testing.assert_close(sums, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(of(70 * R - 3, normalise), a, rtol=1e-3, atol=1e-3)  # but for the constant
    assert not a[8:].any(), "a group without contrast"


def test_the_order_of_the_rows_and_the_names_of_the_groups_do_not_matter():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(of(R[order], groups=GROUPS[order] + 7), of(R)[order], rtol=0, atol=1e-12)


def test_rewards_are_normalised_each_then_weighted():
    """Neither the scale of one reward nor that of all weights decides."""
    other = R.flip(0) * 1000
    both = of({"a": R, "b": other}, weights={"a": 3.0, "b": 1.0})
    torch.testing.assert_close(both, 0.75 * of(R) + 0.25 * of(other), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(of({"a": R}, weights={"a": 9.0}), of(R))
    torch.testing.assert_close(of({"a": R}, weights={"a": -1.0}), -of(R))


def test_they_are_clipped_last():
    assert of(R, clip=0.5).abs().max() == 0.5
    spike = torch.zeros(100)
    spike[0] = 1.0
    assert of(spike, groups=torch.zeros(100)).max() == 5.0


def test_contrast_is_of_all_rewards():
    assert without_contrast({"r": R}, GROUPS).tolist() == [False] * 8 + [True] * 4
    other = torch.arange(12).float()
    assert not without_contrast({"r": R, "b": other}, GROUPS).any()
    assert without_contrast({"r": torch.full((6,), 0.1)}, torch.zeros(6)).all(), "0.1 has no exact mean"


def test_running_statistics_are_a_prompts_own_once_there_are_16():
    """Before that all rows' (DDPO); a queue holds the last 32 of a text, whatever group they were in."""
    running = Running()
    first = torch.arange(12.0)
    a = of(first, "running", running=running, prompts=["p"] * 12)
    expected = (first - first.mean()) / (first.std(correction=0) + CONSTANT)
    torch.testing.assert_close(a, expected.double())
    second = torch.arange(12.0) + 100
    a = of(second, "running", running=running, prompts=["p"] * 6 + ["q"] * 6)
    past = torch.cat([first, second[:6]]).double()
    expected = (second[:6].double() - past.mean()) / (past.std(correction=0) + CONSTANT)
    torch.testing.assert_close(a[:6], expected)
    everything = (second[6:].double() - second.double().mean()) / (second.double().std(correction=0) + CONSTANT)
    torch.testing.assert_close(a[6:], everything)

    again = Running()
    again.load_state_dict(running.state_dict())
    third = torch.full((12,), 7.0)
    found = [of(third, "running", running=memory, prompts=["p"] * 12) for memory in (running, again)]
    assert torch.equal(*found)
