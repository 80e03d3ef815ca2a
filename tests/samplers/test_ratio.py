"""Log-probabilities, KL and ratios of a transition: the closed forms of the two conventions and of GRPO-Guard."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from samplers import FlowSchedule, Transition, flow_sde_law, guard_log_ratio, noisy

D, A = 256, 0.7


def apart(m2: float, std: float, rows: int = 200_000, d: int = D):
    """(old, new, x): means whose mean squared distance is m2, x drawn from old."""
    shift = torch.full((1, d), math.sqrt(m2), dtype=torch.float32)
    zero = torch.zeros(1, d)
    level = torch.tensor(std)
    x = level * torch.randn(rows, d, generator=torch.Generator().manual_seed(1))
    return Transition(zero, level), Transition(shift, level), x


def test_mean_and_sum_are_the_two_conventions():
    step = Transition(torch.randn(3, 4, 5), torch.tensor([0.1, 0.7, 2.0]))
    x, other = torch.randn(2, 3, 4, 5)
    density = Normal(step.mean, step.std[:, None, None])
    expected = density.log_prob(x).flatten(1)
    torch.testing.assert_close(step.log_prob(x, "sum"), expected.sum(1))
    torch.testing.assert_close(step.log_prob(x), expected.mean(1))
    kl = kl_divergence(density, Normal(other, step.std[:, None, None])).flatten(1)
    torch.testing.assert_close(step.kl(other, "sum"), kl.sum(1))
    torch.testing.assert_close(step.kl(other), kl.mean(1))


def test_a_step_without_noise_has_neither():
    still = Transition(torch.zeros(2, 3), torch.tensor([0.1, 0.0]))
    for call in (still.log_prob, still.kl):
        with pytest.raises(ValueError, match="std = 0 has no density"):
            call(torch.zeros(2, 3))


def test_a_ratio_of_sums_has_mean_1_and_one_of_means_is_biased_below():
    """E[R] = 1 for SUM; exp(-(m2/(2 std^2)) (1 - 1/D)) for MEAN, E[log R] = -m2/(2 std^2)."""
    old, new, x = apart(m2=0.04, std=0.4, d=8)
    ratio = (new.log_prob(x, "sum") - old.log_prob(x, "sum")).exp()
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * float(ratio.std()) / math.sqrt(len(x)))
    gap = new.log_prob(x) - old.log_prob(x)
    assert float(gap.mean()) == pytest.approx(-0.125, abs=1e-3)
    assert float(gap.exp().mean()) == pytest.approx(math.exp(-0.125 * (1 - 1 / 8)), abs=1e-3)


@pytest.mark.parametrize("std", [0.05, 0.4])
def test_the_guard_ratio_has_mean_1_and_a_spread_that_no_step_changes(std):
    """2e5 draws; its log's standard deviation is sqrt(m2/D) whatever std is, that of the plain one sqrt(m2/D)/std."""
    old, new, x = apart(m2=1e-4, std=std)
    log_ratio = guard_log_ratio(new, old.log_prob(x), old.mean, x)
    assert float(log_ratio.exp().mean()) == pytest.approx(1, abs=1e-5)
    assert float(log_ratio.std()) == pytest.approx(math.sqrt(1e-4 / D), rel=0.02)
    plain = new.log_prob(x) - old.log_prob(x)
    assert float(plain.std()) == pytest.approx(math.sqrt(1e-4 / D) / std, rel=0.02)


@pytest.mark.parametrize("t", [0.9, 0.5, 0.1])
def test_gradients_at_the_old_policy_are_the_closed_forms(t):
    """-d log R/d v for Flow-SDE: plain (1 + a^2/2) sqrt(h)/(g D) z, Guard (1 + a^2/2) h/D z: late steps weigh most in
    the plain form, and Guard divided by h weighs them all alike."""
    t, s = torch.tensor(t, dtype=torch.float64), torch.tensor(t - 0.05, dtype=torch.float64)
    h, g = t - s, A * (t / (1 - t)).sqrt()
    x0, eps, z = torch.randn(3, 1, D, dtype=torch.float64)
    v = torch.zeros(1, D, dtype=torch.float64, requires_grad=True)
    step = noisy(flow_sde_law(A))(x0 - t * v, eps + (1 - t) * v, *FlowSchedule()(t), *FlowSchedule()(s))
    x, old = step.sample(z).detach(), step.log_prob(step.sample(z)).detach()
    (plain,) = torch.autograd.grad(-(step.log_prob(x) - old).sum(), v, retain_graph=True)
    torch.testing.assert_close(plain, (1 + A**2 / 2) * h.sqrt() / (g * D) * z, rtol=1e-9, atol=1e-12)
    (guard,) = torch.autograd.grad(-guard_log_ratio(step, old, step.mean.detach(), x).sum(), v)
    torch.testing.assert_close(guard, (1 + A**2 / 2) * h / D * z, rtol=1e-9, atol=1e-12)


def test_kl_of_two_velocities():
    """Flow-SDE: h (1 + a^2/2)^2 |dv|^2/(2 g^2)."""
    t, s = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    x0, eps, dv = torch.randn(3, 2, D, dtype=torch.float64)
    rule, levels = noisy(flow_sde_law(A)), (*FlowSchedule()(t), *FlowSchedule()(s))
    moved = rule(x0 - t * dv, eps + (1 - t) * dv, *levels)
    g2 = A**2 * t / (1 - t)
    expected = (t - s) * (1 + A**2 / 2) ** 2 * dv.square().sum(1) / (2 * g2)
    torch.testing.assert_close(moved.kl(rule(x0, eps, *levels).mean, "sum"), expected, rtol=1e-9, atol=0)
