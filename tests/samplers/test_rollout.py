"""Rollouts on Gaussian data, where the answer is known: values, orders, gradients, inversion."""

import math
from itertools import pairwise

import pytest
import torch
from samplers_toy import ddim_gain

from samplers import (
    DPMpp2M,
    FlowSchedule,
    GaussianDenoiser,
    GradPolicy,
    Grid,
    Heun,
    Prediction,
    Rng,
    VPSchedule,
    add_noise,
    cfg,
    constant,
    ddim,
    euler,
    euler_ancestral,
    full,
    grids,
    invert,
    last,
    lcm,
    sample,
    sensitivity,
)

STD, MEAN = 0.6, 0.3
SMOOTH = torch.linspace(0.9999, 0.01, 4001, dtype=torch.float64).square()  # a fine table: no kinks at the grids tested


def problem(schedule, kind=Prediction.V, rows=3):
    data = GaussianDenoiser(schedule, kind, std=STD)
    x_T = torch.randn(rows, 5, dtype=torch.float64)
    return data, x_T, constant(torch.full((rows, 5), MEAN, dtype=torch.float64))


def exact(schedule, x, t, s):
    """The probability flow of Gaussian data from t to s: y_s = sqrt(V_s/V_t) y_t."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    ratio = ((alpha_s**2 * STD**2 + sigma_s**2) / (alpha_t**2 * STD**2 + sigma_t**2)).sqrt()
    return alpha_s * MEAN + ratio * (x - alpha_t * MEAN)


def even(first, end, num_steps):
    return Grid(torch.linspace(first, end, num_steps + 1, dtype=torch.float64))


def order(errors):
    return [math.log2(before / after) for before, after in pairwise(errors)]


@pytest.mark.parametrize("kind", [Prediction.SAMPLE, Prediction.V, Prediction.FLOW])
def test_ddim_along_a_grid_is_the_product_of_its_gains(schedule, kind):
    data, x_T, cond = problem(schedule, kind)
    grid = even(1.0, 0.0, 7)
    y = x_T - schedule(grid.times[0])[0] * MEAN
    for t, s in pairwise(grid.times):
        y = ddim_gain(schedule, t, s, STD) * y
    torch.testing.assert_close(sample(data, x_T, grid, cond).x0, MEAN + y, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("rule", "expected"), [(ddim, 1), (Heun, 2), (DPMpp2M, 2)])
@pytest.mark.parametrize("name", ["vp", "flow"])
def test_order_of_convergence(rule, expected, name):
    schedule = VPSchedule(SMOOTH) if name == "vp" else FlowSchedule()
    data, x_T, cond = problem(schedule)
    # Away from both ends: at t = 0 lambda is infinite, and the last step of a second-order rule is first order.
    errors = []
    for num_steps in (16, 32, 64, 128):
        grid = even(0.9, 0.1, num_steps)
        x_s = sample(data, x_T, grids.doubled(grid) if rule is Heun else grid, cond, step=rule).x0
        errors.append(float((x_s - exact(schedule, x_T, grid.times[0], grid.times[-1])).norm()))
    assert all(abs(found - expected) < 0.2 for found in order(errors)[1:]), (order(errors), errors)


def test_the_variance_of_a_stochastic_chain_is_the_closed_recursion(schedule):
    """Var_s = k_eta^2 Var_t + std^2, step by step: exact for the mean map, the draws are counted by the last line."""
    eta, grid = 0.8, even(0.95, 0.05, 6)
    data, _, _ = problem(schedule)
    rows = 4000
    variance = torch.tensor(1.0, dtype=torch.float64)
    x_T = torch.randn(rows, 5, dtype=torch.float64)
    alpha, sigma = schedule(grid.times)
    for i in range(6):
        marginal = alpha[i] ** 2 * STD**2 + sigma[i] ** 2
        std = (
            eta
            * (sigma[i + 1] / sigma[i])
            * (sigma[i] ** 2 - (alpha[i] / alpha[i + 1]) ** 2 * sigma[i + 1] ** 2).sqrt()
        )
        k_eta = (alpha[i + 1] * alpha[i] * STD**2 + (sigma[i + 1] ** 2 - std**2).sqrt() * sigma[i]) / marginal
        variance = k_eta**2 * variance + std**2
    cond = constant(torch.zeros(rows, 5, dtype=torch.float64))
    x_s = sample(data, x_T, grid, cond, eta=eta, rng=Rng(3, range(rows))).x0
    assert float(x_s.var()) == pytest.approx(float(variance), rel=4 * math.sqrt(2 / x_s.numel()))


def draft_gradient(schedule, grid, k):
    """g_s = k g_t + (alpha_s - sigma_s alpha_t/sigma_t), g = 0 before step N - K: d x_0/d theta for x0_hat + theta."""
    g = torch.zeros((), dtype=torch.float64)
    num_steps = len(grid.times) - 1
    for i, (t, s) in enumerate(pairwise(grid.times)):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        if i >= num_steps - k:
            g = ddim_gain(schedule, t, s, STD) * g + alpha_s - sigma_s * alpha_t / sigma_t
    return float(g)


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("kind", [Prediction.V, Prediction.SAMPLE])
def test_draft_k_gradient_is_the_closed_form(schedule, kind, k, checkpoint):
    grid = even(1.0, 0.0, 8)
    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    _, x_T, cond = problem(schedule)
    data = GaussianDenoiser(schedule, kind, STD, offset=theta)
    x0 = sample(data, x_T, grid, cond, grad=GradPolicy(last(k).keep, checkpoint=checkpoint)).x0
    (gradient,) = torch.autograd.grad(x0[0, 0], theta)
    assert float(gradient) == pytest.approx(draft_gradient(schedule, grid, k), rel=1e-10)


def value_at(theta, schedule, grid, x_T, cond):
    data = GaussianDenoiser(schedule, Prediction.V, STD, offset=torch.full((), theta, dtype=torch.float64))
    return float(sample(data, x_T, grid, cond).x0.square().sum())


def test_truncation_is_real(schedule):
    """K = N equals finite differences, K = 1 does not, K = 0 has no graph at all."""
    grid = even(1.0, 0.0, 6)
    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    _, x_T, cond = problem(schedule)
    data = GaussianDenoiser(schedule, Prediction.V, STD, offset=theta)
    numeric = (value_at(1e-5, schedule, grid, x_T, cond) - value_at(-1e-5, schedule, grid, x_T, cond)) / 2e-5
    gradients = {}
    for k in (1, 6):
        loss = sample(data, x_T, grid, cond, grad=last(k)).x0.square().sum()
        gradients[k] = float(torch.autograd.grad(loss, theta)[0])
    assert gradients[6] == pytest.approx(numeric, rel=1e-8)
    assert abs(gradients[1] - numeric) > 0.1 * abs(numeric)
    assert not sample(data, x_T, grid, cond, grad=last(0)).x0.requires_grad
    assert not sample(data, x_T.requires_grad_(), grid, cond).x0.requires_grad


def test_checkpointing_recomputes_each_step_at_its_own_time():
    """The closure trap: a recomputation that sees the last step's t is wrong for every K >= 2, and silently so."""
    schedule, seen = FlowSchedule(), []

    class Recorder:
        kind = Prediction.FLOW

        def __init__(self):
            self.schedule = schedule
            self.weight = torch.ones((), dtype=torch.float64, requires_grad=True)

        def __call__(self, x_t, t, cond):
            seen.append(float(t))
            return self.weight * x_t * t**2

    network = Recorder()
    x_T = torch.randn(2, 3, dtype=torch.float64)
    grid = grids.flow(5)
    (stored,) = torch.autograd.grad(
        sample(network, x_T, grid, None, grad=GradPolicy(last(4).keep, checkpoint=False)).x0.sum(), network.weight
    )
    seen.clear()
    x0 = sample(network, x_T, grid, None, grad=last(4)).x0
    assert seen == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    seen.clear()
    (recomputed,) = torch.autograd.grad(x0.sum(), network.weight)
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert torch.equal(recomputed, stored)


@pytest.mark.parametrize("rule", [ddim, Heun, DPMpp2M])
def test_every_rule_is_differentiable_end_to_end(schedule, rule):
    grid = even(1.0, 0.0, 5)
    grid = grids.doubled(grid) if rule is Heun else grid
    _, x_T, cond = problem(schedule)

    def loss(theta):
        data = GaussianDenoiser(schedule, Prediction.V, STD, offset=theta)
        return sample(data, x_T, grid, cond, step=rule, grad=full()).x0.square().sum()

    theta = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (theta,))


def test_gradients_survive_a_prefix_under_autocast():
    """pytorch/pytorch#112583: a torch that has it (2.6 does) fails here if the autocast cache is not cleared."""
    layer = torch.nn.Linear(4, 4)

    class Network:
        schedule, kind = FlowSchedule(), Prediction.FLOW

        def __call__(self, x_t, t, cond):
            return layer(x_t)

    with torch.autocast("cpu", torch.bfloat16):
        x0 = sample(Network(), torch.randn(2, 4), grids.flow(3), None, grad=last(1)).x0
    x0.float().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


def test_one_lcm_step_is_the_data_prediction(vp):
    """E[x0 | x_T] is nearly a constant: what one-step generation gives before distillation, not the data."""
    data, x_T, cond = problem(vp, Prediction.EPSILON)
    one = sample(data, x_T, grids.lcm(vp, 1), cond, step=lcm)
    alpha, sigma = vp(torch.tensor(1.0))
    expected = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x_T - alpha * MEAN)
    torch.testing.assert_close(one.x0, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(one.x0, one.x0_hat)


def test_lcm_noises_its_prediction_again(vp):
    data, x_T, cond = problem(vp, Prediction.EPSILON)
    rng = Rng(1, range(3))
    trajectory = sample(data, x_T, grids.lcm(vp, 2), cond, step=lcm, keep="all", rng=rng)
    again = add_noise(vp, trajectory.x0_hats[0], rng.normal("step/0", x_T), trajectory.times[1])
    torch.testing.assert_close(trajectory.states[1], again, rtol=1e-12, atol=0)
    torch.testing.assert_close(trajectory.x0, trajectory.x0_hats[1], rtol=1e-12, atol=0)
    assert trajectory.transitions[1].deterministic


def test_flow_heun_is_diffusers_own():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(6)
    data, x_T, cond = problem(FlowSchedule(), Prediction.FLOW)
    x = x_T
    for timestep in scheduler.timesteps:
        x = scheduler.step(data(x, timestep.double() / 1000, cond), timestep, x).prev_sample
    sigmas = scheduler.sigmas.double()
    grid = Grid(torch.cat([sigmas[:1], sigmas[1:-1].unique().flip(0), sigmas[-1:]]))
    ours = sample(data, x_T, grids.doubled(grid), cond, step=Heun).x0
    torch.testing.assert_close(ours, x.double(), rtol=1e-6, atol=1e-6)


def test_heun_needs_its_own_grid(vp):
    data, x_T, cond = problem(vp)
    with pytest.raises(ValueError, match=r"grids\.doubled"):
        sample(data, x_T, grids.euler(vp, 4, "trailing"), cond, step=Heun)


@pytest.mark.parametrize("kind", [Prediction.EPSILON, Prediction.V, Prediction.FLOW])
def test_inversion_converges_at_first_order_and_to_the_exact_flow(schedule, kind):
    data, x0, cond = problem(schedule, kind)
    roundtrip, flow_error = [], []
    for num_steps in (50, 100, 200):
        grid = even(0.95, 0.05, num_steps)
        trajectory = invert(data, x0, grid, cond)
        roundtrip.append(float((sample(data, trajectory.x_T, grid, cond).x0 - x0).norm()))
        flow_error.append(float((trajectory.x_T - exact(schedule, x0, grid.times[-1], grid.times[0])).norm()))
    assert all(abs(found - 1) < 0.25 for found in order(roundtrip) + order(flow_error)), (roundtrip, flow_error)


def test_fixed_point_inversion_is_exact(schedule):
    data, x0, cond = problem(schedule)
    grid = even(0.95, 0.0, 20)
    error = {}
    for iterations in (0, 1, 30):
        trajectory = invert(data, x0, grid, cond, iterations=iterations)
        error[iterations] = float((sample(data, trajectory.x_T, grid, cond).x0 - x0).abs().max())
    assert error[0] > 1e-2 and error[1] < error[0] / 2 and error[30] < 1e-6, error


def test_an_inverted_trajectory_runs_from_data_to_noise(vp):
    data, x0, cond = problem(vp)
    trajectory = invert(data, x0, grids.ddim(vp, 5, offset=1), cond)
    assert torch.equal(trajectory.x0, x0) and torch.equal(trajectory.x_T, trajectory.states[-1])
    assert trajectory.times.tolist() == sorted(trajectory.times.tolist()) and len(trajectory.states) == 6
    assert not trajectory.x_T.requires_grad


def test_inversion_follows_guidance_too(vp):
    """Guidance is in the denoiser, so inverting a guided one undoes a guided rollout."""
    data, x0, cond = problem(vp)
    guided = cfg(data, constant(torch.zeros(1, 5, dtype=torch.float64)), 2.0)
    grid = even(0.95, 0.0, 20)
    x_T = invert(guided, x0, grid, cond, iterations=40).x_T
    torch.testing.assert_close(sample(guided, x_T, grid, cond).x0, x0, rtol=0, atol=1e-6)
    assert (sample(data, x_T, grid, cond).x0 - x0).abs().max() > 1e-2


def test_what_cannot_be_inverted_is_refused(vp):
    data, x0, cond = problem(vp, Prediction.SAMPLE)
    with pytest.raises(ValueError, match="says nothing of the noise"):
        invert(data, x0, grids.ddim(vp, 5), cond)
    with pytest.raises(ValueError, match="strictly decreasing"):
        invert(data, x0, grids.doubled(grids.ddim(vp, 5)), cond)


def test_a_trajectory_keeps_only_what_is_asked(vp):
    data, x_T, cond = problem(vp)
    grid = grids.ddim(vp, 4, offset=1)
    least = sample(data, x_T, grid, cond)
    assert len(least.states) == 1 and least.x0_hats == () and least.transitions == ()
    with pytest.raises(ValueError, match="kept its last state only"):
        _ = least.x_T
    states = sample(data, x_T, grid, cond, keep="states")
    assert len(states.states) == 5 and states.x0_hats == () and torch.equal(states.x_T, x_T)
    assert torch.equal(states.times, grid.times)
    everything = sample(data, x_T, grid, cond, keep="all", eta=1.0, rng=Rng(0, range(3)))
    assert len(everything.transitions) == len(everything.x0_hats) == 4
    assert everything.transitions[0].log_prob(everything.states[1]).shape == (3,)
    assert torch.equal(least.x0, states.x0)


def test_stochastic_steps_need_an_rng_and_rules_without_eta_refuse_one(vp):
    data, x_T, cond = problem(vp)
    grid = grids.ddim(vp, 3, offset=1)
    with pytest.raises(ValueError, match="needs the batch's rng"):
        sample(data, x_T, grid, cond, eta=1.0)
    with pytest.raises(TypeError, match="eta"):
        sample(data, x_T, grid, cond, step=DPMpp2M, eta=1.0)


def test_eta_zero_asked_for_is_not_a_rules_own_default(vp):
    data, x_T, cond = problem(vp)
    grid = grids.euler(vp, 4, "trailing")
    plain = sample(data, x_T, grid, cond, step=euler).x0
    assert torch.equal(sample(data, x_T, grid, cond, step=euler_ancestral, eta=0.0).x0, plain)
    assert not torch.equal(sample(data, x_T, grid, cond, step=euler_ancestral, rng=Rng(0, range(3))).x0, plain)


def test_a_sample_does_not_depend_on_its_batch(vp):
    data, x_T, cond = problem(vp, rows=4)
    grid = grids.ddim(vp, 6, offset=1)
    whole = sample(data, x_T, grid, cond, eta=1.0, rng=Rng(0, [10, 11, 12, 13])).x0
    part = sample(data, x_T[2:], grid, cond[2:], eta=1.0, rng=Rng(0, [12, 13])).x0
    assert torch.equal(whole[2:], part)


def test_low_precision_latents_keep_their_dtype(vp):
    data = GaussianDenoiser(vp, Prediction.EPSILON, offset=torch.zeros(()))
    x_T = torch.randn(2, 4, dtype=torch.bfloat16)
    for rule in (ddim, DPMpp2M):
        x0 = sample(data, x_T, grids.ddim(vp, 3, offset=1), constant(torch.zeros_like(x_T)), step=rule).x0
        assert x0.dtype == torch.bfloat16


def test_sensitivity_of_ddim_50_on_stable_diffusions_table(vp):
    """1.44 at the first step, 0.012 at the last; the last 1/5/10/25 steps hold 0.1/2.1/3.8/11.4 % of the total."""
    grid = grids.ddim(vp, 50, offset=1, ends_at_zero=False)
    found = sensitivity(vp, Prediction.EPSILON, grid).abs()
    assert float(found[0]) == pytest.approx(1.44, abs=0.01)
    assert float(found[-1]) == pytest.approx(0.012, abs=0.001)
    shares = [100 * float(found[-k:].sum() / found.sum()) for k in (1, 5, 10, 25)]
    assert shares == pytest.approx([0.1, 2.1, 3.8, 11.4], abs=0.06)


def test_sensitivity_is_what_autograd_says_of_a_detached_rollout(schedule):
    grid, theta = even(1.0, 0.0, 5), torch.zeros(5, dtype=torch.float64, requires_grad=True)

    class Shifted:
        kind = Prediction.FLOW

        def __init__(self):
            self.schedule = schedule

        def __call__(self, x_t, t, cond):
            return torch.tanh(x_t) + theta[int((grid.times == t).nonzero())]

    x0 = sample(Shifted(), torch.randn(1, 1).double(), grid, None, grad=GradPolicy(full().keep, detach_input=True)).x0
    (gradient,) = torch.autograd.grad(x0.sum(), theta)
    torch.testing.assert_close(gradient, sensitivity(schedule, Prediction.FLOW, grid), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", [ddim, Heun, DPMpp2M, lcm])
def test_a_rollout_never_waits_for_the_device(vp, rule):
    """On the meta device there is nothing to read: a value taken back to the host would raise."""

    class Network(torch.nn.Module):
        schedule, kind = vp, Prediction.EPSILON

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 3, device="meta")

        def forward(self, x_t, t, cond):
            return self.layer(x_t) + cond.tensors["mean"]

    network = Network()
    x_T, cond = torch.randn(2, 3, device="meta"), constant(torch.zeros(2, 3, device="meta"))
    guided = cfg(network, cond[:1], 3.0, interval=(0.2, 0.8))
    grid = grids.euler(vp, 5, "trailing")
    grid = grids.doubled(grid) if rule is Heun else grid
    options = {"eta": 1.0} if rule is ddim else {}
    trajectory = sample(guided, x_T, grid, cond, step=rule, grad=last(2), rng=Rng(0, [0, 1]), **options)
    trajectory.x0.sum().backward()
    assert network.layer.weight.grad is not None and network.layer.weight.grad.device.type == "meta"
    assert invert(guided, x_T, grids.ddim(vp, 3, offset=1), cond, iterations=1).x_T.device.type == "meta"
