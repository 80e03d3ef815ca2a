"""What each published method differentiates, read off the autograd graph: which steps' parameters the gradient reaches,
whether it passes through the network's input, and whether it passes along the latent recursion."""

from dataclasses import replace

import pytest
import torch

from samplers import (
    DPMpp2M,
    FlowSchedule,
    Grid,
    Prediction,
    Rng,
    add_noise,
    bernoulli,
    cfg,
    constant,
    contiguous,
    ddim,
    denoise,
    full,
    grids,
    last,
    normal,
    sample,
    sensitivity,
    split,
    subset,
)

N = 8
GRID = grids.flow(N)


class Network:
    """out = theta_i x^2/4 + cond: one parameter per step, a Jacobian that is not constant, a memory of its inputs."""

    schedule, kind = FlowSchedule(), Prediction.FLOW

    def __init__(self, num_steps=N, grid=GRID):
        self.times = grid.times
        self.theta = torch.full((num_steps,), 0.7, dtype=torch.float64, requires_grad=True)
        self.inputs, self.outs = {}, {}

    def __call__(self, x_t, t, cond):
        i = int((self.times == t).nonzero())
        x_in = x_t.view_as(x_t)  # a node of its own: x_t also reaches x_0 along the recursion
        out = self.theta[i] * x_in.square() / 4 + cond.tensors["mean"]
        self.inputs[i], self.outs[i] = x_in, out
        return out


def batch(rows=3):
    x_T = torch.randn(rows, 2, dtype=torch.float64)
    return x_T, constant(torch.full((rows, 2), 0.1, dtype=torch.float64))


def rollout(policy, network=None, grid=GRID, **options):
    network = network or Network()
    x_T, cond = batch()
    return network, sample(network, x_T, grid, cond, grad=replace(policy, checkpoint=False), **options)


def reached(value, leaves):
    """Which of the tensors `value` depends on, as the graph says."""

    def one(leaf):
        return torch.autograd.grad(value.sum(), leaf, allow_unused=True, retain_graph=True)[0] is not None

    return [leaf.requires_grad and one(leaf) for leaf in leaves]


def steps(network, value):
    """The steps whose parameter the gradient reaches."""
    return (torch.autograd.grad(value.sum(), network.theta, retain_graph=True)[0] != 0).tolist()


def through_input(network, value):
    return reached(value, [network.inputs[i] for i in sorted(network.inputs)])


def test_draft_all_steps_through_inputs_and_recursion():
    network, trajectory = rollout(full())
    assert steps(network, trajectory.x0) == [True] * N
    assert through_input(network, trajectory.x0) == [False] + [True] * (N - 1)  # x_T is a constant


def test_draft_k_stops_at_the_boundary_only():
    network, trajectory = rollout(last(3))
    assert steps(network, trajectory.x0) == [False] * 5 + [True] * 3
    assert through_input(network, trajectory.x0) == [False] * 6 + [True] * 2
    assert not network.outs[4].requires_grad  # the prefix builds no graph


def test_draft_lv_adds_gradients_from_fresh_noises_on_a_constant_sample():
    network, trajectory = rollout(last(1))
    t, cond = GRID.times[N - 1], batch()[1]
    base = torch.autograd.grad(trajectory.x0.sum(), network.theta, retain_graph=True)[0]
    again = []
    for j in range(2):
        eps = Rng(0, range(3)).normal(f"lv/{j}", trajectory.x0)
        x_t = add_noise(network.schedule, trajectory.x0.detach(), eps, t)
        x0_hat, _ = denoise(network, x_t, t, cond)
        assert steps(network, x0_hat) == [False] * (N - 1) + [True]
        assert not x_t.requires_grad
        again.append(torch.autograd.grad(x0_hat.sum(), network.theta)[0])
    assert len({float(g[-1]) for g in [base, *again]}) == 3  # three different estimates of one gradient


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("policy", [contiguous(1, N), bernoulli(), normal(4, 2)])
def test_alignprop_random_steps_by_detached_outputs(policy, eta):
    for step in range(6):
        network, trajectory = rollout(policy, eta=eta, rng=Rng(0, range(3), step))
        assert steps(network, trajectory.x0) == list(trajectory.kept)
        first = list(trajectory.kept).index(True)
        assert through_input(network, trajectory.x0) == [kept and i > first for i, kept in enumerate(trajectory.kept)]


def test_a_step_that_is_not_kept_is_passed_along_the_recursion():
    """Steps 0 and 5 of 8: the gradient of step 0 reaches x_0 by the latents alone, past steps 1-4, 6 and 7."""
    kept = [True, False, False, False, False, True, False, False]
    network, trajectory = rollout(replace(full(), keep=lambda num_steps, generator: kept))
    assert steps(network, trajectory.x0) == kept
    assert through_input(network, trajectory.x0) == [False] * 5 + [True] + [False] * 2


def test_refl_one_late_step_without_guidance_reads_its_data_prediction():
    num_steps = 40
    grid = grids.flow(num_steps)
    m = int(torch.randint(30, 40, (), generator=Rng(0, [0], step=3).shared("refl")))
    network = Network(num_steps, grid)
    stopped = Grid(grid.times[: m + 2], grid.init_scale)
    _, trajectory = rollout(last(1), network, stopped, eta=1.0, rng=Rng(0, range(3)))
    assert steps(network, trajectory.x0_hat) == [i == m for i in range(num_steps)]
    assert through_input(network, trajectory.x0_hat) == [False] * (m + 1)


def test_drtune_detaches_inputs_and_keeps_the_recursion():
    """A plain sum of per-step terms: d x_0/d out_i is the bare recursion's, with no network Jacobian in it."""
    network, trajectory = rollout(replace(subset(3), detach_input=True), rng=Rng(0, range(3)))
    assert steps(network, trajectory.x0) == list(trajectory.kept) and sum(trajectory.kept) == 3
    assert through_input(network, trajectory.x0) == [False] * N
    bare = sensitivity(network.schedule, network.kind, GRID)
    for i, kept in enumerate(trajectory.kept):
        if kept:
            (gradient,) = torch.autograd.grad(trajectory.x0.sum(), network.outs[i], retain_graph=True)
            torch.testing.assert_close(gradient, bare[i].expand(3, 2), rtol=1e-10, atol=0)


def test_drtune_can_stop_early_and_read_the_data_prediction():
    stopped = Grid(GRID.times[:6])
    network, trajectory = rollout(replace(full(), detach_input=True), grid=stopped)
    assert steps(network, trajectory.x0_hat) == [True] * 5 + [False] * 3


def test_adjusted_direct_fine_tuning_gives_every_step_the_same_weight():
    """All steps, detached inputs, DPM-Solver++ 2M, and a per-step factor that undoes the recursion's own."""
    network = Network()
    bare = sensitivity(network.schedule, network.kind, GRID, step=DPMpp2M)
    policy = replace(full(), detach_input=True, scale=(1 / bare.abs()).tolist())
    network, trajectory = rollout(policy, network, step=DPMpp2M)
    plain = rollout(replace(policy, scale=None), Network(), step=DPMpp2M)[1]
    assert trajectory.x0.shape == plain.x0.shape
    for i in range(N):
        (gradient,) = torch.autograd.grad(trajectory.x0.sum(), network.outs[i], retain_graph=True)
        torch.testing.assert_close(gradient, bare[i].sign().expand(3, 2), rtol=1e-9, atol=0)


def test_a_gradient_scale_changes_no_value():
    x_T, cond = batch()
    plain = sample(Network(), x_T, GRID, cond, grad=full()).x0
    scaled = sample(Network(), x_T, GRID, cond, grad=replace(full(), scale=[0.3] * N)).x0
    assert torch.equal(plain, scaled)


def test_direct_align_one_call_on_a_leaf_and_a_known_noise():
    """SRPO: noise an image, take one predicted step, and recover x0 with the noise that is known."""
    network, (x0, cond) = Network(), batch()
    t, s = GRID.times[2], GRID.times[3]
    eps = Rng(0, range(3)).normal("known", x0)
    x_t = add_noise(network.schedule, x0, eps, t)
    x_s = ddim(*denoise(network, x_t, t, cond), *network.schedule(t), *network.schedule(s)).mean
    alpha_s, sigma_s = network.schedule(s)
    x0_hat = (x_s - sigma_s * eps) / alpha_s
    assert steps(network, x0_hat) == [i == 2 for i in range(N)]
    assert x_t.is_leaf and not x_t.requires_grad
    # A perfect network is left with x0 itself, whatever t is.
    perfect = ddim(*split(eps - x0, x_t, *network.schedule(t), network.kind), *network.schedule(t), alpha_s, sigma_s)
    torch.testing.assert_close((perfect.mean - sigma_s * eps) / alpha_s, x0, rtol=1e-10, atol=1e-12)


def test_reno_and_dno_differentiate_the_noise_only():
    network, (x_T, cond) = Network(), batch()
    network.theta.requires_grad_(False)
    x_T.requires_grad_()

    def loss(noise):
        rng = Rng(0, range(3))  # ancestral noise frozen: DNO's eta = 1
        return sample(network, noise, GRID, cond, eta=1.0, rng=rng, grad=full()).x0.square().sum()

    assert torch.autograd.gradcheck(loss, (x_T,))
    assert network.theta.grad is None


def test_guidance_is_inside_the_gradient():
    """Both branches carry gradient: d out/d theta is (1 - w) of the unconditional and w of the conditional one."""
    network, (x_T, _) = Network(), batch()
    uncond, cond = torch.zeros(1, 2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    uncond.requires_grad_(), cond.requires_grad_()
    guided = cfg(network, constant(uncond), 5.0)
    x0 = sample(guided, x_T, Grid(GRID.times[:2]), constant(cond), grad=full()).x0
    gradients = torch.autograd.grad(x0.sum(), [uncond, cond])
    step = GRID.times[1] - GRID.times[0]  # x_s = x_t + (s - t) v
    torch.testing.assert_close(gradients[0], (-4 * 3 * step).expand(1, 2), rtol=1e-10, atol=0)
    torch.testing.assert_close(gradients[1], (5 * step).expand(3, 2), rtol=1e-10, atol=0)
