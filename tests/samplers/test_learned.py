"""Learned steps and hand-over: identities, and the search on a toy whose best steps are not Euler's."""

import math

import pytest
import torch

from samplers import (
    ByTime,
    FlowSchedule,
    GaussianDenoiser,
    GradPolicy,
    Grid,
    Learned,
    Prediction,
    VPSchedule,
    constant,
    ddim,
    full,
    grids,
    mixture,
    sample,
    times_of,
)
from samplers.momentum import GHVB

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
VP = VPSchedule((1 - BETAS).cumprod(0))
COND = constant(torch.zeros(4, 3, dtype=torch.float64))
X_T = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_rows_sum_to_one_and_nothing_is_the_identity():
    matrix = mixture(torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64))
    assert matrix.sum(1).tolist() == pytest.approx([1, 1, 1]) and matrix[0].tolist() == [1, 0, 0]
    assert matrix[2, :2].tolist() == [-0.2, 0.5] and matrix[0, 2] == matrix[1, 2] == 0
    assert torch.equal(mixture(torch.zeros(6)), torch.eye(4)) and mixture(torch.zeros(0)).tolist() == [[1.0]]
    times = times_of(torch.zeros(4), 0.9, 0.1)
    assert times.tolist() == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1]) and times[-1] == 0.1


@pytest.mark.parametrize("kind", [Prediction.EPSILON, Prediction.FLOW], ids=["vp", "flow"])
def test_the_identity_is_ddim_and_ab2s_rows_are_ab2(kind):
    schedule, grid = (VP, grids.ddim(VP, 6)) if kind is Prediction.EPSILON else (FlowSchedule(), grids.flow(6))
    data = GaussianDenoiser(schedule, kind, std=0.5)
    plain = sample(data, X_T, grid, COND, step=ddim).x0
    same = sample(data, X_T, grid, COND, step=Learned.of(torch.eye(6, dtype=torch.float64))).x0
    torch.testing.assert_close(same, plain, rtol=1e-10, atol=1e-10)
    if kind is Prediction.FLOW:  # in x0 Adams-Bashforth's rows are not those of eps
        rows = torch.eye(6, dtype=torch.float64) * 1.5 + torch.diag(torch.full((5,), -0.5, dtype=torch.float64), -1)
        rows[0, 0] = 1.0
        found = sample(data, X_T, grid, COND, step=Learned.of(rows)).x0
        torch.testing.assert_close(found, sample(data, X_T, grid, COND, step=GHVB.of(2, 1.0)).x0)


def test_times_on_the_table_have_a_gradient():
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    times = times_of(logits, 0.9, 0.1)  # every one of them is on the table
    alpha, sigma = VP(times)
    grad = torch.autograd.grad((alpha[1:-1] + sigma[1:-1]).sum(), logits)[0]
    assert grad.abs().min() > 0
    moved = times_of(logits + torch.tensor([1e-3, 0, 0, 0], dtype=torch.float64), 0.9, 0.1)
    finite = (sum(c[1:-1].sum() for c in VP(moved)) - (alpha + sigma)[1:-1].sum()) / 1e-3
    assert float(finite.detach()) == pytest.approx(float(grad[0]), rel=2e-2)
    assert torch.equal(VP.index(times.detach()), VP.index(times).detach())


class Ring:
    """Eight Gaussians on a circle of radius 2, exactly; a flow."""

    schedule, kind = FlowSchedule(), Prediction.FLOW
    centres = torch.stack(
        [2 * torch.tensor([math.cos(a), math.sin(a)]) for a in torch.arange(8) * math.pi / 4]
    ).double()

    def __call__(self, x_t, t, cond):
        t, variance = t.double(), 0.15**2
        total = (1 - t) ** 2 * variance + t**2
        gap = x_t[:, None] - (1 - t) * self.centres
        share = torch.softmax(-gap.square().sum(-1) / (2 * total), 1)
        x0 = (share[..., None] * (self.centres + (1 - t) * variance / total * gap)).sum(1)
        return (x_t - x0) / t


@pytest.mark.parametrize("seed", [0])
def test_five_learned_steps_come_several_times_nearer_than_eulers(seed):
    """The sheet's toy: a ring of eight Gaussians, the loss at the end, finite training."""
    toy, g = Ring(), torch.Generator().manual_seed(seed)
    train, held = (torch.randn(n, 2, dtype=torch.float64, generator=g) for n in (256, 512))
    none = constant(torch.zeros(1, dtype=torch.float64))
    with torch.no_grad():
        goals = [sample(toy, x, grids.flow(200), none).x0 for x in (train, held)]
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    below = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    whole = GradPolicy(full().keep, checkpoint=False)
    optimiser = torch.optim.Adam([logits, below], lr=3e-2)

    def end(x):
        grid = Grid(times_of(logits, 1.0, 0.0))
        return sample(toy, x, grid, none, step=Learned.of(mixture(below)), grad=whole).x0

    def rms():
        with torch.no_grad():
            return float((end(held) - goals[1]).square().mean().sqrt())

    before = rms()
    for _ in range(150):
        optimiser.zero_grad()
        (end(train) - goals[0]).square().mean().backward()
        optimiser.step()
    assert before / rms() > 3


def test_the_first_denoiser_draws_until_its_time_and_rows_are_told_apart():
    early, late = (GaussianDenoiser(FlowSchedule(), Prediction.FLOW, std=s) for s in (0.5, 2.0))
    both = ByTime([(early, 0.5), (late, 0.0)])
    t = torch.tensor([0.9, 0.5, 0.2, 0.7], dtype=torch.float64)
    found, cond = both(X_T, t, COND), COND
    wanted = torch.where((t > 0.5)[:, None], early(X_T, t, cond), late(X_T, t, cond))
    torch.testing.assert_close(found, wanted)
    assert torch.equal(both(X_T, t[0], cond), early(X_T, t[0], cond))
    assert torch.equal(both(X_T, t[1], cond), late(X_T, t[1], cond))
