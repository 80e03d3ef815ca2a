"""Heavy ball and GHVB: coefficients, limits of stability, orders, and what they are at b = 1."""

import math
from itertools import pairwise

import pytest
import torch

from samplers import (
    GHVB,
    FlowSchedule,
    GaussianDenoiser,
    Grid,
    HeavyBall,
    Prediction,
    VPSchedule,
    constant,
    ddim,
    full,
    grids,
    last,
    sample,
)
from samplers.momentum import ADAMS_BASHFORTH, ghvb_coefficients

STD, MEAN = 0.6, 0.3
BETAS = (0.25, 0.5, 0.8, 1.0)
SMOOTH = torch.linspace(0.9999, 0.01, 4001, dtype=torch.float64).square()


def problem(schedule, kind=Prediction.V, rows=3):
    data = GaussianDenoiser(schedule, kind, std=STD)
    x_T = torch.randn(rows, 5, dtype=torch.float64)
    return data, x_T, constant(torch.full((rows, 5), MEAN, dtype=torch.float64))


def even(first, end, num_steps):
    return Grid(torch.linspace(first, end, num_steps + 1, dtype=torch.float64))


@pytest.mark.parametrize("order", range(1, 6))
def test_adams_bashforth_integrates_polynomials_below_its_order(order):
    """sum_j a_j (-j)^p = 1/(p + 1): the next step of t^p from its last values, at spacing 1."""
    for power in range(order):
        found = sum(a * (-j) ** power for j, a in enumerate(ADAMS_BASHFORTH[order - 1]))
        assert found == pytest.approx(1 / (power + 1))


@pytest.mark.parametrize("order", range(1, 6))
def test_ghvb_coefficients_sum_to_one_and_end_in_adams_bashforth(order):
    for beta in BETAS:
        assert sum(ghvb_coefficients(order, beta)) == pytest.approx(1)
    assert ghvb_coefficients(order, 1.0) == pytest.approx(ADAMS_BASHFORTH[order - 1])


@pytest.mark.parametrize("order", range(2, 6))
@pytest.mark.parametrize("beta", BETAS[:-1])
def test_ghvb_undoes_the_lag_of_its_average(order, beta):
    """On slopes t^p, p < order, the average lags behind; the coefficients of it integrate the slope all the same."""
    for power in range(order):
        total, v, history = 0.0, 0.0, []
        for n in range(-400, 1):  # long enough for the average to forget its start
            v = (1 - beta) * v + beta * float(n) ** power
            history.insert(0, v)
        total = sum(g * w for g, w in zip(ghvb_coefficients(order, beta), history, strict=False))
        assert total == pytest.approx(1 / (power + 1), abs=1e-6)


@pytest.mark.parametrize("rule", [HeavyBall, GHVB])
def test_without_momentum_and_memory_it_is_ddim(rule, schedule):
    data, x_T, cond = problem(schedule)
    grid = even(1.0, 0.0, 7)
    found = sample(data, x_T, grid, cond, step=rule.of(1, 1.0)).x0
    torch.testing.assert_close(found, sample(data, x_T, grid, cond, step=ddim).x0, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("order", range(1, 6))
def test_both_are_adams_bashforth_at_beta_one(order, schedule):
    """Against the multistep recursion written out in y and tau."""
    data, x_T, cond = problem(schedule, Prediction.EPSILON)
    grid, flow = even(0.95, 0.05, 9), isinstance(schedule, FlowSchedule)
    x, slopes = x_T, []
    for t, s in pairwise(grid.times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        eps = data(x, t, cond)
        x0 = (x - sigma_t * eps) / alpha_t
        slopes.insert(0, eps - x0 if flow else eps)
        known = ADAMS_BASHFORTH[min(order, len(slopes)) - 1]
        mixed = sum(a * f for a, f in zip(known, slopes, strict=False))
        if flow:
            x = x + (s - t) * mixed
        else:
            x = alpha_s * (x / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * mixed)
    for rule in (HeavyBall, GHVB):
        torch.testing.assert_close(sample(data, x_T, grid, cond, step=rule.of(order, 1.0)).x0, x, rtol=1e-9, atol=1e-10)


LIMITS = [(HeavyBall, k + 1, lambda b, c=c: c * (2 - b) / b) for k, c in enumerate((2, 1, 6 / 11, 3 / 10))]
LIMITS += [
    (GHVB, 1, lambda b: 2 * (2 - b) / b),
    (GHVB, 2, lambda b: 2 - b),
    (GHVB, 3, lambda b: 6 * (2 - b) / (12 - b)),
    (GHVB, 4, lambda b: 3 * (2 - b) / (11 - b)),
]


@pytest.mark.parametrize(("rule", "order", "limit"), LIMITS)
@pytest.mark.parametrize("beta", [0.5, 0.8, 1.0])
def test_limits_of_stability(rule, order, limit, beta):
    """y' = -z y in unit steps, on the flow's line: bounded 2 % inside the closed form, not 2 % outside."""

    def grown(z):
        step, y = rule.of(order, beta)(), torch.tensor([[1.0]], dtype=torch.float64)
        for n in range(1500):
            t, f = torch.tensor(float(n), dtype=torch.float64), -z * y
            x0 = y - t * f
            y = step(x0, x0 + f, 1 - t, t, -t, t + 1).mean
            if not y.abs() < 1e12:
                break
        return float(y.abs())

    assert grown(0.98 * limit(beta)) < 1 and grown(1.02 * limit(beta)) > 1e3


@pytest.mark.parametrize(
    ("rule", "order", "beta", "expected"),
    [(HeavyBall, 1, 0.8, 1), (HeavyBall, 2, 0.8, 1), (GHVB, 2, 0.8, 2), (GHVB, 3, 0.5, 3), (GHVB, 2, 1.0, 2)],
)
def test_order_of_convergence_on_a_grid_even_in_tau(rule, order, beta, expected):
    schedule = VPSchedule(SMOOTH)
    data, x_T, cond = problem(schedule)
    errors = []
    for num_steps in (80, 160, 320, 640):
        first, end = (float(s / a) for a, s in (schedule(torch.tensor(t)) for t in (0.9, 0.1)))
        grid = Grid(schedule.time_of_ratio(torch.linspace(first, end, num_steps + 1, dtype=torch.float64)))
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(grid.times[0]), schedule(grid.times[-1])
        ratio = ((alpha_s**2 * STD**2 + sigma_s**2) / (alpha_t**2 * STD**2 + sigma_t**2)).sqrt()
        exact = alpha_s * MEAN + ratio * (x_T - alpha_t * MEAN)
        errors.append(float((sample(data, x_T, grid, cond, step=rule.of(order, beta)).x0 - exact).norm()))
    slopes = [math.log2(before / after) for before, after in pairwise(errors)]
    assert slopes[-1] == pytest.approx(expected, abs=0.25), slopes


@pytest.mark.parametrize("rule", [HeavyBall, GHVB])
def test_one_trajectory_leaves_nothing_to_the_next_and_the_kind_of_network_does_not_matter(rule, schedule):
    grid, step = even(0.98, 0.0, 6), rule.of(4, 0.8)
    _, x_T, cond = problem(schedule)
    runs = [
        sample(GaussianDenoiser(schedule, kind, std=STD), x_T, grid, cond, step=step).x0
        for kind in (Prediction.EPSILON, Prediction.V, Prediction.EPSILON)
    ]
    assert torch.equal(runs[0], runs[2])
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rule", [HeavyBall, GHVB])
def test_gradients_go_through_the_memory(rule, schedule):
    _, x_T, cond = problem(schedule)

    def loss(theta):
        data = GaussianDenoiser(schedule, Prediction.V, STD, offset=theta)
        return sample(data, x_T, even(1.0, 0.0, 5), cond, step=rule.of(3, 0.7), grad=full()).x0.square().sum()

    assert torch.autograd.gradcheck(loss, (torch.tensor(0.2, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("rule", [HeavyBall, GHVB])
def test_it_starts_at_pure_noise_keeps_dtypes_and_reads_nothing_back(rule, vp):
    from samplers import zero_terminal_snr

    (alpha, _) = vp(vp.time(torch.arange(1000.0)))
    zero = VPSchedule(zero_terminal_snr(alpha**2))
    data, x_T, cond = problem(zero)
    assert sample(data, x_T, grids.ddim(zero, 5, "trailing"), cond, step=rule.of(2, 0.8)).x0.isfinite().all()
    low = GaussianDenoiser(vp, Prediction.EPSILON, offset=torch.zeros(()))
    noise = torch.randn(2, 4, dtype=torch.bfloat16)
    found = sample(low, noise, grids.ddim(vp, 4, offset=1), constant(torch.zeros_like(noise)), step=rule.of(3, 0.8))
    assert found.x0.dtype == torch.bfloat16

    class Network(torch.nn.Module):
        schedule, kind = vp, Prediction.EPSILON

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 3, device="meta")

        def forward(self, x_t, t, cond):
            return self.layer(x_t)

    network = Network()
    x_T = torch.randn(2, 3, device="meta")
    sample(network, x_T, grids.ddim(vp, 4, offset=1), None, step=rule.of(3, 0.8), grad=last(2)).x0.sum().backward()
    assert network.layer.weight.grad is not None


@pytest.mark.parametrize(("order", "beta"), [(0, 0.5), (6, 0.5), (2, 0.0), (2, 1.1)])
def test_settings_out_of_range_are_refused(order, beta):
    with pytest.raises(ValueError, match="order must be within"):
        GHVB.of(order, beta)
