"""Steps that begin at pure noise on a table of zero terminal SNR, where alpha + sigma is 1 as on a flow."""

import pytest
import torch
from samplers_toy import SD_BETAS

from samplers import (
    GHVB,
    FlowSchedule,
    GaussianDenoiser,
    Grid,
    HeavyBall,
    Learned,
    Prediction,
    VPSchedule,
    constant,
    ddim,
    grids,
    sample,
)

VP = VPSchedule.from_config({**SD_BETAS, "rescale_betas_zero_snr": True})
AS_DDIM = (Learned.of(torch.eye(5, dtype=torch.float64)), HeavyBall.of(1, 1.0), GHVB.of(1, 1.0))
COND = constant(torch.full((2, 3), 0.7, dtype=torch.float64))
X_T = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def drawn(step, schedule=VP, steps=5):
    grid = grids.ddim(VP, steps, "trailing") if schedule is VP else grids.flow(steps)
    return sample(GaussianDenoiser(schedule, Prediction.V, std=0.5), X_T, grid, COND, step=step, keep="states")


@pytest.mark.parametrize("rule", AS_DDIM, ids=["learned", "heavy_ball", "ghvb"])
@pytest.mark.parametrize("schedule", [VP, FlowSchedule()], ids=["vp", "flow"])
def test_a_rule_without_a_memory_is_ddim_from_pure_noise_on(rule, schedule):
    for found, expected in zip(drawn(rule, schedule).states, drawn(ddim, schedule).states, strict=True):
        torch.testing.assert_close(found, expected)


def test_one_step_for_all_ends_at_what_is_predicted():
    for rule in (Learned.of(torch.eye(1, dtype=torch.float64)), HeavyBall.of(2, 0.8), GHVB.of(2, 0.8)):
        found = drawn(rule, steps=1)
        torch.testing.assert_close(found.x0, found.x0_hat)


@pytest.mark.parametrize("rule", [HeavyBall.of(2, 1.0), GHVB.of(2, 1.0)], ids=["heavy_ball", "ghvb"])
def test_what_is_remembered_of_the_first_step_is_the_noise_that_it_saw(rule):
    """Adams-Bashforth's second step, by hand: in x/alpha and sigma/alpha the slope is 3/2 eps - 1/2 eps before."""
    data, grid = GaussianDenoiser(VP, Prediction.V, std=0.5), grids.ddim(VP, 5, "trailing")
    alpha, sigma = VP(grid.times)
    found = sample(data, X_T, Grid(grid.times[:3]), COND, step=rule, keep="all")
    x, x0, before = found.states[1], found.x0_hats[1], X_T  # at pure noise x is the noise
    eps, length = (x - alpha[1] * x0) / sigma[1], sigma[2] / alpha[2] - sigma[1] / alpha[1]
    expected = x / alpha[1] + length * (1.5 * eps - before / 2)
    torch.testing.assert_close(found.states[2] / alpha[2], expected)
