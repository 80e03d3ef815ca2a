"""The noise laws against the formulas as they were published, written out here; their limits, and what they leave."""

import math

import pytest
import torch

from samplers import (
    LAWS,
    LEVELS,
    FlowSchedule,
    cps_law,
    dance_sde_law,
    ddim,
    ddim_law,
    flow_sde_law,
    flow_time,
    noisy,
)

T, S = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.55, dtype=torch.float64)
FLOW = FlowSchedule()


def levels(t=T, s=S, schedule=FLOW):
    return (*schedule(t), *schedule(s))


def flow_state(t=T):
    """(x_t, v, x0, eps) of a flow at t."""
    x0, eps = torch.randn(2, 3, 5, dtype=torch.float64)
    return (1 - t) * x0 + t * eps, eps - x0, x0, eps


def test_flow_sde_is_the_published_step():
    """Flow-GRPO eq. 9: x + [v + g^2/(2t) (x + (1 - t) v)] dt + g sqrt(-dt) z, dt = s - t, g = a sqrt(t/(1 - t))."""
    x, v, x0, eps = flow_state()
    g, dt = 0.7 * (T / (1 - T)).sqrt(), S - T
    step = noisy(flow_sde_law(0.7))(x0, eps, *levels())
    torch.testing.assert_close(step.mean, x + (v + g**2 / (2 * T) * (x + (1 - T) * v)) * dt, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(step.std, g * (-dt).sqrt(), rtol=1e-12, atol=0)


def test_flow_sde_at_pure_noise_takes_the_next_time_as_released():
    """1 - t is 0 there: the released code reads the grid's second time in its place, and is finite."""
    one = torch.ones((), dtype=torch.float64)
    std, c = flow_sde_law(0.7)(*levels(one, S))
    assert float(std) == pytest.approx(0.7 * math.sqrt(1 / (1 - 0.55)) * math.sqrt(0.45), rel=1e-12)
    assert float(c) == pytest.approx(0.55 - float(std) ** 2 / 2, rel=1e-12)


def test_dance_sde_is_the_published_step():
    """DanceGRPO: x + v dt - (eta^2/2) score dt + eta sqrt(-dt) z, score = -(x - (1 - t) x0)/t^2, dt = s - t."""
    x, v, x0, eps = flow_state()
    eta, dt = 0.3, S - T
    score = -(x - (1 - T) * (x - T * v)) / T**2
    step = noisy(dance_sde_law(eta))(x0, eps, *levels())
    torch.testing.assert_close(step.mean, x + v * dt - 0.5 * eta**2 * score * dt, rtol=1e-12, atol=1e-12)
    assert float(step.std) == pytest.approx(eta * math.sqrt(0.15), rel=1e-12)


def test_cps_is_the_published_step():
    """FlowCPS: x_s = (1 - s) x0 + s cos(a pi/2) eps + s sin(a pi/2) z."""
    _, _, x0, eps = flow_state()
    step = noisy(cps_law(0.8))(x0, eps, *levels())
    expected = 0.45 * x0 + 0.55 * math.cos(0.4 * math.pi) * eps
    torch.testing.assert_close(step.mean, expected, rtol=1e-12, atol=1e-12)
    assert float(step.std) == pytest.approx(0.55 * math.sin(0.4 * math.pi), rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_the_ddim_law_is_the_ddim_step(schedule, eta):
    x0, eps = torch.randn(2, 3, 5, dtype=torch.float64)
    step = noisy(ddim_law(eta))(x0, eps, *levels(schedule=schedule))
    known = ddim(x0, eps, *levels(schedule=schedule), eta=eta)
    assert torch.equal(step.mean, known.mean) and torch.equal(step.std, known.std)


@pytest.mark.parametrize("name", LAWS)
def test_the_noise_that_is_left_over(name, schedule):
    """c^2 + std^2 - sigma_s^2: 0 for DDIM and CPS; std^2 (1 - s/t) + std^4/(4 t^2) for the two SDEs, in flow time."""
    alpha_t, sigma_t, alpha_s, sigma_s = levels(schedule=schedule)
    std, c = LAWS[name](LEVELS[name])(alpha_t, sigma_t, alpha_s, sigma_s)
    left = float(c**2 + std**2 - sigma_s**2)
    if name in ("ddim", "cps"):
        assert left == pytest.approx(0, abs=1e-15)
        return
    t, s, size = flow_time(alpha_t, sigma_t), flow_time(alpha_s, sigma_s), alpha_s + sigma_s
    v = (std / size) ** 2
    assert left == pytest.approx(float(size**2 * (v * (1 - s / t) + v**2 / (4 * t**2))), rel=1e-10) and left > 0
    if name == "flow_sde" and isinstance(schedule, FlowSchedule):
        assert left == pytest.approx(0.052, abs=5e-4), "at t = .7, s = .55, a = .7"


def test_on_a_vp_table_an_sde_step_is_the_flows_in_rescaled_states(vp):
    """x/(alpha + sigma) is a flow of time tau: the step there, scaled back."""
    x0, eps = torch.randn(2, 3, 5, dtype=torch.float64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = vp(T), vp(S)
    tau_t, tau_s = flow_time(alpha_t, sigma_t), flow_time(alpha_s, sigma_s)
    for law in (flow_sde_law(0.7), dance_sde_law(0.3)):
        step = noisy(law)(x0, eps, alpha_t, sigma_t, alpha_s, sigma_s)
        flow = noisy(law)(x0, eps, *levels(tau_t, tau_s))
        torch.testing.assert_close(step.mean, (alpha_s + sigma_s) * flow.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(step.std, (alpha_s + sigma_s) * flow.std, rtol=1e-12, atol=0)


def test_ddim_1_is_memoryless_and_flow_sde_at_sqrt_2_tends_to_it():
    """std^2/h -> 2t/(1 - t); at t = 1 DDIM(1) keeps nothing of the noise, std = s."""
    h = torch.tensor(1e-6, dtype=torch.float64)
    for law in (ddim_law(1.0), flow_sde_law(math.sqrt(2))):
        std, _ = law(*levels(T, T - h))
        assert float(std**2 / h) == pytest.approx(2 * 0.7 / 0.3, rel=1e-4)
    std, c = ddim_law(1.0)(*levels(torch.ones((), dtype=torch.float64), S))
    assert (float(std), float(c)) == (pytest.approx(0.55), pytest.approx(0, abs=1e-12))


@pytest.mark.parametrize("name", LAWS)
def test_the_gradient_of_the_mean_with_respect_to_v(name):
    """d mean/d v = c (1 - t) - (1 - s) t; for Flow-SDE that is -h (1 + a^2/2)."""
    law = LAWS[name](LEVELS[name])
    _, c = law(*levels())
    v = torch.zeros((), dtype=torch.float64, requires_grad=True)
    step = noisy(law)((0.3 - T * v)[None], (0.3 + (1 - T) * v)[None], *levels())
    (found,) = torch.autograd.grad(step.mean.sum(), v)
    assert float(found) == pytest.approx(float(c * (1 - T) - (1 - S) * T), rel=1e-12)
    if name == "flow_sde":
        assert float(found) == pytest.approx(-0.15 * (1 + 0.7**2 / 2), rel=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_rows_may_stand_at_different_steps(name, schedule):
    """(B,) coefficients give each row what () coefficients give it alone."""
    times, nexts = torch.tensor([0.9, 0.5, 0.2]).double(), torch.tensor([0.6, 0.45, 0.1]).double()
    x0, eps = torch.randn(2, 3, 4, dtype=torch.float64)
    rule = noisy(LAWS[name](LEVELS[name]))
    together = rule(x0, eps, *schedule(times), *schedule(nexts))
    for i in range(3):
        alone = rule(x0[i : i + 1], eps[i : i + 1], *schedule(times[i]), *schedule(nexts[i]))
        torch.testing.assert_close(together.mean[i : i + 1], alone.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(together.std[i], alone.std, rtol=1e-12, atol=0)
