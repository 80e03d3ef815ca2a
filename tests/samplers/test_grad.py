"""The laws that choose which steps carry gradient."""

import math

import pytest
import torch

from samplers import (
    FlowSchedule,
    GaussianDenoiser,
    GradPolicy,
    Prediction,
    Rng,
    bernoulli,
    constant,
    contiguous,
    full,
    generator,
    grids,
    last,
    normal,
    sample,
    subset,
)

N = 50


def draws(policy, num_steps=N, count=4000):
    return torch.tensor([policy.decide(num_steps, generator(0, "grad", number)) for number in range(count)])


def test_last_and_full():
    assert last(3).decide(5, None) == [False, False, True, True, True]
    assert last(0).decide(2, None) == [False, False]
    assert full().decide(3, None) == [True] * 3


def test_contiguous_is_a_uniform_tail():
    kept = draws(contiguous(2, 5))
    assert bool((kept[:, 1:] >= kept[:, :-1]).all())  # once on, on to the end
    lengths = kept.sum(1)
    shares = torch.stack([(lengths == k).double().mean() for k in range(2, 6)])
    assert lengths.min() == 2 and lengths.max() == 5
    assert float((shares - 0.25).abs().max()) < 4 * math.sqrt(0.25 * 0.75 / len(kept))


def test_bernoulli_keeps_step_i_with_probability_i_plus_1_over_n_plus_1():
    kept = draws(bernoulli()).double()
    expected = torch.arange(1, N + 1).double() / (N + 1)
    assert float(((kept.mean(0) - expected) / (expected * (1 - expected) / len(kept)).sqrt()).abs().max()) < 4.5
    pairs = ((kept[:, 24] - expected[24]) * (kept[:, 25] - expected[25])).mean()  # drawn by themselves
    assert abs(float(pairs)) < 4 * 0.25 / math.sqrt(len(kept))


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_bernoulli_keeps_a_step_of_few_too(num_steps):
    """Of two steps none is kept in 2!/3^2 of the draws: there the last one is."""
    kept = draws(bernoulli(), num_steps=num_steps)
    assert bool(kept.any(1).all())
    if num_steps == 2:
        share = float((kept == torch.tensor([False, True])).all(1).double().mean())
        assert share == pytest.approx(4 / 9 + 2 / 9, abs=4 * (2 / 9 / len(kept)) ** 0.5)


def test_normal_is_a_tail_from_a_rounded_down_normal_within_the_trajectory():
    kept = draws(normal(42, 5))
    assert bool((kept[:, 1:] >= kept[:, :-1]).all())
    first = (~kept).sum(1)
    assert first.min() >= 1 and first.max() <= N - 1
    # int() of Normal(42, 5) below 50: mean 41.5 less the mean cut off by the bound.
    cut = math.exp(-0.5 * 1.6**2) / math.sqrt(2 * math.pi) / (0.5 * (1 + math.erf(1.6 / math.sqrt(2))))
    assert float(first.double().mean()) == pytest.approx(41.5 - 5 * cut, abs=4 * 5 / math.sqrt(len(kept)))


def test_subset_is_equally_spaced_with_a_uniform_offset():
    kept = draws(subset(3), num_steps=25)
    assert bool((kept.sum(1) == 3).all())
    places = kept.int().topk(3).indices.sort(1).values
    assert bool(((places[:, 1:] - places[:, :-1]) == 8).all())
    offsets = places[:, 0]
    assert offsets.min() == 0 and offsets.max() == 8 and len(offsets.unique()) == 9
    assert bool((draws(subset(5), num_steps=5, count=3) == 1).all())


def test_random_laws_are_shared_by_ranks_and_vary_with_the_update():
    assert Rng(0, [0, 1], step=7).shared("grad").initial_seed() == Rng(0, [5], step=7).shared("grad").initial_seed()
    assert len({tuple(bernoulli().decide(N, Rng(0, [0], step=step).shared("grad"))) for step in range(5)}) == 5


@pytest.mark.parametrize("policy", [last(6), contiguous(1, 6), subset(6)])
def test_more_steps_than_are_taken_are_refused(policy):
    with pytest.raises(ValueError, match="more steps than are taken"):
        policy.decide(5, generator(0, "grad", 0))


@pytest.mark.parametrize("policy", [contiguous(1, 3), bernoulli(), normal(3, 1), subset(2)])
def test_random_laws_say_what_they_miss(policy):
    with pytest.raises(ValueError, match=r"rng=Rng\(seed, indices, step\)"):
        policy.decide(5, None)


def test_a_normal_that_could_redraw_for_ever_is_refused():
    with pytest.raises(ValueError, match="must be in"):
        normal(42, 5).decide(20, generator(0, "grad", 0))


def test_impossible_laws_are_refused_when_they_are_made():
    with pytest.raises(ValueError, match="0 <= low <= high"):
        contiguous(4, 3)
    with pytest.raises(ValueError, match="at least one"):
        subset(0)


def test_decisions_of_the_wrong_length_are_refused():
    with pytest.raises(ValueError, match="2 decisions for a trajectory of 3"):
        GradPolicy(lambda num_steps, generator: [True, True]).decide(3, None)
    with pytest.raises(ValueError, match="1 factors for a trajectory of 3"):
        GradPolicy(full().keep, scale=[1.0]).decide(3, None)


def test_a_factor_scales_the_gradient_of_its_call_and_no_value():
    """With 0 for the other calls the gradient is in proportion to the last call's factor."""
    x_T = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def drawn(factor):
        mean = torch.full((2, 3), 0.3, dtype=torch.float64, requires_grad=True)
        how = GradPolicy(full().keep, checkpoint=False, scale=[0.0, 0.0, factor])
        data = GaussianDenoiser(FlowSchedule(), Prediction.FLOW, std=0.5)
        x0 = sample(data, x_T, grids.flow(3), constant(mean), grad=how).x0
        return x0.detach(), torch.autograd.grad(x0.sum(), mean)[0]

    (x0, plain), (same, scaled) = drawn(1.0), drawn(4.0)
    torch.testing.assert_close(x0, same)
    assert plain.abs().min() > 0
    torch.testing.assert_close(scaled, 4 * plain)
