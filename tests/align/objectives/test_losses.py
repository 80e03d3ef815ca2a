"""Formulas of losses against their closed forms."""

import math

import pytest
import torch

from align.objectives._losses import bradley_terry, dpo, guard_factor, log_ratio_of_errors

BETA = 7.0


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_at_the_reference_the_loss_is_log_2_and_the_errors_gradient_is_a_quarter_of_beta():
    """d loss/d err_w = +beta/4, d loss/d err_l = -beta/4 a sample; the mean over B divides by B."""
    errors = leaf(0.3, 1.1), leaf(0.8, 0.2)
    ratios = [log_ratio_of_errors(error, error.detach()) for error in errors]
    losses = dpo(*ratios, beta=BETA)
    torch.testing.assert_close(losses, torch.full((2,), math.log(2), dtype=torch.float64))
    winner, loser = torch.autograd.grad(losses.mean(), errors)
    torch.testing.assert_close(winner, torch.full((2,), BETA / 4 / 2, dtype=torch.float64))
    torch.testing.assert_close(loser, -winner)


def test_the_three_forms_at_known_points():
    w, other = leaf(0.5, -0.2), leaf(0.1, 0.3)
    z = (w - other).detach()
    torch.testing.assert_close(dpo(w, other, beta=2.0), -torch.sigmoid(2 * z).log())
    torch.testing.assert_close(dpo(w, other, beta=2.0, form="hinge").detach(), leaf(0.2, 2.0).detach())
    torch.testing.assert_close(dpo(w, other, beta=2.0, form="ipo").detach(), leaf(0.0225, 0.5625).detach())
    assert dpo(leaf(1.0), leaf(0.0), beta=2.0, form="hinge").item() == 0


def test_the_sigmoid_form_neither_overflows_nor_dies():
    loss = dpo(leaf(-400.0), leaf(400.0), beta=BETA)
    assert loss.item() == pytest.approx(800 * BETA)
    (gradient,) = torch.autograd.grad(dpo(w := leaf(-400.0), leaf(400.0), beta=BETA).sum(), w)
    assert gradient.item() == pytest.approx(-BETA)


def test_bradley_terry_is_least_at_the_labels_logit():
    for p, best in ((0.5, 0.0), (0.8, math.log(4))):
        a = leaf(best + 0.7)
        (gradient,) = torch.autograd.grad(bradley_terry(a, leaf(0.7), torch.tensor([p]).double()).sum(), a)
        assert gradient.item() == pytest.approx(0, abs=1e-7)
    wrong = bradley_terry(leaf(0.0), leaf(3.0), torch.ones(1).double())
    assert wrong.item() == pytest.approx(math.log1p(math.exp(3)))


def test_the_guard_takes_the_largest_factor_that_keeps_the_winner():
    g_w = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    g_l = torch.tensor([[4.0, 3.0], [0.5, 9.0], [-2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    f = guard_factor(g_w, g_l)
    assert f.tolist() == [0.25, 1.0, 1.0, 1.0]
    kept = (g_w * (g_w - f[:, None] * g_l)).sum(1)
    assert bool((kept >= 0).all())
    assert float((g_w[0] * (g_w[0] - 1.01 * f[0] * g_l[0])).sum()) < 0
