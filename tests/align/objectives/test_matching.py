"""The closed forms of distribution matching on Gaussians: what the gradients are, and what they would be done wrong."""

import math

import pytest
import torch
from few_toys import SCHEDULES

from align.objectives._matching import drawn_times, importance, kl_form, min_snr, noisy_target, score_form, toward
from samplers import FlowSchedule, Prediction, generator

ROWS = 40_000
MEAN, STD, MEAN_REF, STD_REF = 0.7, 0.8, 0.2, 1.1


def normal(name, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(0, name, 0))


class Game:
    """A generator m + sd z of one number, so that a row's mean is itself, at a time of a schedule."""

    def __init__(self, schedule, tau=0.6, rows=ROWS):
        self.alpha, self.sigma = (c.expand(rows) for c in schedule(torch.tensor(tau, dtype=torch.float64)))
        self.m = torch.tensor(MEAN, dtype=torch.float64, requires_grad=True)
        self.sd = torch.tensor(STD, dtype=torch.float64, requires_grad=True)
        z, self.eps = normal("z", rows, 1), normal("eps", rows, 1)
        self.x = self.alpha[:, None] * (self.m + self.sd * z) + self.sigma[:, None] * self.eps

    def denoised(self, x, mean, std):
        alpha, sigma = self.alpha[0], self.sigma[0]
        return sigma / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)

    def gradients(self, losses):
        return [float(g) for g in torch.autograd.grad(losses.mean(), (self.m, self.sd), retain_graph=True)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_kl_forms_gradients_of_mean_and_scale(name):
    game = Game(SCHEDULES[name][0])
    ref, fake = game.denoised(game.x, MEAN_REF, STD_REF), game.denoised(game.x, MEAN, STD)
    found = game.gradients(kl_form(game.x, ref, fake, game.sigma, torch.ones(ROWS)))
    alpha, sigma = float(game.alpha[0]), float(game.sigma[0])
    v_ref, v = alpha**2 * STD_REF**2 + sigma**2, alpha**2 * STD**2 + sigma**2
    assert found[0] == pytest.approx(alpha**2 * (MEAN - MEAN_REF) / v_ref, rel=0.05)
    assert found[1] == pytest.approx(alpha**2 * STD * (1 / v_ref - 1 / v), rel=0.05)
    same = kl_form(game.x, fake, fake, game.sigma, torch.ones(ROWS))
    assert game.gradients(same) == [0, 0], "at q = p there is nothing to do"


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_score_forms_gradient_is_whole_only_through_both_networks(name):
    """Against finite differences of the distance, the law of x_tau held fixed. Detaching y takes from the scale."""
    c, h = 0.3, 1e-4
    game = Game(SCHEDULES[name][0])

    def distance(mean, std):
        x = game.x.detach()
        y = (game.denoised(x, MEAN_REF, STD_REF) - game.denoised(x, mean, std)) / game.sigma[:, None]
        return float((y.square() + c**2).sqrt().mean())

    true = [(distance(MEAN + h, STD) - distance(MEAN - h, STD)) / (2 * h)]
    true.append((distance(MEAN, STD + h) - distance(MEAN, STD - h)) / (2 * h))
    fake, ref = game.denoised(game.x, MEAN, STD), game.denoised(game.x, MEAN_REF, STD_REF)
    ones = torch.ones(ROWS)
    found = game.gradients(score_form(game.eps, ref, fake, game.sigma, ones, c))
    assert found == pytest.approx(true, rel=0.05)
    fixed = fake + (ref - fake).detach()  # y as a constant
    wrong = game.gradients(score_form(game.eps, fixed, game.denoised(game.x, MEAN, STD), game.sigma, ones, c))
    assert wrong[0] == pytest.approx(true[0], rel=0.05), "a shift does not tell the two apart"
    assert abs(wrong[1]) < 0.75 * abs(true[1])


def test_the_scale_alone_gets_exactly_half_where_y_is_detached():
    """Equal means and the square distance, which pseudo-Huber is far below c: then the half is exact."""
    game, c, ones = Game(FlowSchedule(), rows=200_000), 1e3, torch.ones(200_000)
    fake, ref = game.denoised(game.x, MEAN, STD), game.denoised(game.x, MEAN, STD_REF)
    alpha, sigma = float(game.alpha[0]), float(game.sigma[0])
    v, v_ref = alpha**2 * STD**2 + sigma**2, alpha**2 * STD_REF**2 + sigma**2
    true = -2 * alpha**2 * STD * (1 / v - 1 / v_ref) / v
    full = game.gradients(c * score_form(game.eps, ref, fake, game.sigma, ones, c))[1]
    fixed = fake + (ref - fake).detach()
    half = game.gradients(c * score_form(game.eps, fixed, game.denoised(game.x, MEAN, STD), game.sigma, ones, c))[1]
    assert full == pytest.approx(true, rel=0.03) and half == pytest.approx(true / 2, rel=0.03)


def test_the_pull_goes_as_far_as_it_says_and_ends_at_zero():
    x0 = normal("x0", 3, 2, 2).requires_grad_()
    direction, size = normal("d", 3, 2, 2), torch.tensor([0.5, 1.0, 2.0])
    (grad,) = torch.autograd.grad(toward(x0, direction, size).sum(), x0)
    torch.testing.assert_close(grad, -2 * direction / 4 / size[:, None, None])
    (grad,) = torch.autograd.grad(toward(x0, direction, size, 1e-3).sum(), x0)
    expected = -direction / (direction.square() + 1e-6).sqrt() / 4 / size[:, None, None]
    torch.testing.assert_close(grad, expected)
    (grad,) = torch.autograd.grad(toward(x0, torch.zeros_like(x0), size, 1e-3).sum(), x0)
    assert not grad.any()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_noisy_datums_target_has_the_clean_ones_slope(name):
    """Regressed on x_tau it is the true output; on the flow .95588 at S^2 = .6, s = .4, tau = .7."""
    schedule, kind = SCHEDULES[name]
    s2, rows = 0.6, 400_000
    at_s, at_tau = (schedule(torch.tensor(t, dtype=torch.float64)) for t in (0.4, 0.7))
    x_s = at_s[0] * math.sqrt(s2) * normal("x0", rows, 1) + at_s[1] * normal("eps0", rows, 1)
    each = [tuple(c.expand(rows) for c in level) for level in (at_s, at_tau)]
    x_tau, u = noisy_target(x_s, normal("eps", rows, 1), *each, kind)
    slope = float((x_tau * u).mean() / x_tau.square().mean())
    alpha, sigma = (float(c) for c in at_tau)
    v = alpha**2 * s2 + sigma**2
    true = {Prediction.EPSILON: sigma / v, Prediction.FLOW: (sigma - alpha * s2) / v}[kind]
    assert float(x_tau.square().mean()) == pytest.approx(v, rel=0.01)
    assert slope == pytest.approx(true, rel=0.01)
    if kind is Prediction.FLOW:
        assert true == pytest.approx(0.95588, abs=1e-4), "the sheet's number"
        naive = float((x_tau * (normal("eps", rows, 1) - x_s)).mean() / x_tau.square().mean())
        assert abs(naive - true) > 0.05, "x_s is no clean image"


def test_a_noisy_datums_target_on_a_flow_is_the_published_line():
    s, tau, x_s, eps = 0.4, 0.7, normal("x", 5, 3), normal("e", 5, 3)
    levels = [tuple(torch.full((5,), v, dtype=torch.float64) for v in (1 - t, t)) for t in (s, tau)]
    _, u = noisy_target(x_s, eps, *levels, Prediction.FLOW)
    a = (1 - tau) / (1 - s)
    b = math.sqrt(tau**2 - (a * s) ** 2)
    torch.testing.assert_close(u, -x_s / (1 - s) + eps / b * (tau + s**2 * a / (1 - s)))


def test_times_and_weights():
    low, high = torch.tensor([0.5, 0.02]), torch.tensor([0.99, 0.49])
    drawn = drawn_times(low, high, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(drawn, torch.tensor([0.5, 0.49], dtype=torch.float64), rtol=0, atol=1e-6)
    weights = importance(low, high, torch.tensor([0, 1, 1]))
    assert float(weights[:2].mean()) == pytest.approx(1) and float(weights[0] / weights[1]) == pytest.approx(49 / 47)
    alpha, sigma = torch.tensor([0.9, 0.6]), torch.tensor([0.1, 0.8])
    torch.testing.assert_close(min_snr(alpha, sigma), torch.tensor([5.0, 0.5625]))
