"""Targets of a distribution: the closed form of two classes against drawn and assigned labels, at any share."""

import math

import pytest
import torch

from align.objectives._assignment import binomial, by_draws, expected

M = 24


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probabilities(count: int, classes: int = 2, seed: int = 1) -> torch.Tensor:
    return (2 * torch.randn(count, classes, generator=rng(seed), dtype=torch.float64)).softmax(1)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_two_classes_exactly_what_drawn_labels_say_on_average(share):
    p, draws = probabilities(M), 1500
    exact = expected(p, [share, 1 - share], rng())
    drawn = by_draws(p, [share, 1 - share], rng(), draws)
    assert float((exact - drawn).abs().max()) < 4 * math.sqrt(0.25 / draws)
    torch.testing.assert_close(exact.sum(1), torch.ones(M, dtype=torch.float64))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_classes_shares_are_the_targets(share):
    """The sum over ranks of P(K0 <= i) is M - E[K0]."""
    found = expected(probabilities(M), [share, 1 - share], rng()).mean(0)
    torch.testing.assert_close(found, torch.tensor([share, 1 - share], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    kept = expected(probabilities(M), [share, 1 - share], rng()).argmax(1).double().mean()
    assert float(kept) == pytest.approx(1 - share, abs=1.5 / M)


def test_the_lower_share_gets_class_0_and_the_middle_is_uncertain():
    """At one half of 24 the ranks 10 to 13 are beyond 0.2; at a share of 0.75 rank 18 is at 0.42."""
    p = torch.linspace(0.01, 0.99, M, dtype=torch.float64)
    p = torch.stack([1 - p, p], 1)
    half = expected(p, [0.5, 0.5], rng())
    uncertain = 1 - half.amax(1) > 0.2
    assert uncertain.nonzero().flatten().tolist() == [10, 11, 12, 13]
    assert half.argmax(1).tolist() == [0] * 12 + [1] * 12
    most = expected(p, [0.75, 0.25], rng())
    assert most.argmax(1).tolist() == [0] * 18 + [1] * 6
    assert float(1 - most[18].max()) == pytest.approx(0.42, abs=0.01)


def test_the_binomial_against_counting():
    drawn = torch.binomial(torch.full((200000,), 7.0), torch.full((200000,), 0.3), generator=rng())
    counted = torch.tensor([float((drawn <= i).double().mean()) for i in range(7)], dtype=torch.float64)
    assert float((binomial(7, 0.3) - counted).abs().max()) < 0.005
    assert binomial(5, 0.0).tolist() == [1.0] * 5 and binomial(5, 1.0).tolist() == [0.0] * 5


@pytest.mark.parametrize("shares", [[0.3, 0.7], [0.2, 0.3, 0.5]])
def test_images_may_come_in_any_order(shares):
    p, order = probabilities(11, len(shares)), torch.randperm(11, generator=rng(3))
    plain, permuted = (expected(q, shares, rng(), num_draws=40) for q in (p, p[order]))
    torch.testing.assert_close(permuted, plain[order], rtol=1e-9, atol=1e-9)


def test_images_that_have_the_distribution_already_are_what_they_are():
    """Six of each of three classes, all sure: whoever is certain is given its own class."""
    classes = torch.arange(18) % 3
    p = 0.02 + 0.94 * torch.nn.functional.one_hot(classes).double()
    p = p + 0.01 * torch.rand(p.shape, generator=rng(5), dtype=torch.float64)
    p = p / p.sum(1, keepdim=True)
    found = expected(p, [1 / 3] * 3, rng(), num_draws=200)
    assert torch.equal(found.argmax(1), classes)
    torch.testing.assert_close(found.mean(0), torch.full((3,), 1 / 3, dtype=torch.float64), rtol=0, atol=0.03)


def test_with_more_classes_the_images_nearest_to_a_class_are_given_it():
    p = torch.tensor([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.6, 0.1, 0.3], [0.9, 0.05, 0.05]], dtype=torch.float64)
    found = by_draws(p, [0.0, 0.5, 0.5], rng(), 200)
    assert found[:, 0].sum() == 0
    assert found[1].argmax() == 1 and found[2].argmax() == 2
