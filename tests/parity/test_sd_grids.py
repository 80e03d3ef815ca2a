"""The grids against the timesteps and sigmas of the diffusers schedulers, for many numbers of steps."""

import pytest
import torch

from align.models._grids import VPGrids
from samplers import VPSchedule

diffusers = pytest.importorskip("diffusers")

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}


def model_grids(scheduler):
    config = dict(scheduler.config)
    return VPGrids(VPSchedule.from_config(config), config)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("rule", list(SCHEDULERS))
def test_times_and_scale_are_the_schedulers(rule, spacing, offset):
    scheduler = getattr(diffusers, SCHEDULERS[rule])(**BETAS, timestep_spacing=spacing, steps_offset=offset)
    grids = model_grids(scheduler)
    for num_steps in (1, 2, 3, 7, 10, 20, 30, 50, 99, 250):
        scheduler.set_timesteps(num_steps)
        grid = grids(num_steps, (4, 8, 8), rule)
        index = grids.schedule.index(grid.times)
        torch.testing.assert_close(index[:-1], scheduler.timesteps.double(), rtol=0, atol=1e-4)
        if rule == "ddim":
            continue
        alpha, sigma = grids.schedule(grid.times)
        torch.testing.assert_close(sigma / alpha, scheduler.sigmas.double(), rtol=1e-5, atol=1e-7)
        start = float(scheduler.init_noise_sigma) / float((1 + scheduler.sigmas[0] ** 2) ** 0.5)
        expected = 1.0 if rule == "dpmpp_2m" else start
        assert grid.init_scale == pytest.approx(expected, rel=1e-6)


def test_leading_starts_where_each_scheduler_does():
    grids = model_grids(diffusers.DDIMScheduler(**BETAS, steps_offset=1))
    starts = {rule: int(grids.schedule.index(grids(20, (4, 8, 8), rule).times[0])) for rule in SCHEDULERS}
    assert starts == {"ddim": 951, "euler": 951, "euler_ancestral": 951, "dpmpp_2m": 941}


@pytest.mark.parametrize("rule", ["euler", "dpmpp_2m"])
def test_karras_noise_levels_are_the_schedulers(rule):
    scheduler = getattr(diffusers, SCHEDULERS[rule])(**BETAS, use_karras_sigmas=True)
    grids = model_grids(scheduler)
    for num_steps in (5, 20):
        scheduler.set_timesteps(num_steps)
        grid = grids(num_steps, (4, 8, 8), rule)
        assert torch.equal(grid.times, grids(num_steps, (4, 8, 8), rule, "karras").times)
        alpha, sigma = grids.schedule(grid.times)
        torch.testing.assert_close(sigma / alpha, scheduler.sigmas.double(), rtol=1e-5, atol=1e-7)


def test_lcm_times_are_the_schedulers():
    scheduler = diffusers.LCMScheduler(**BETAS)
    grids = model_grids(scheduler)
    for num_steps in (1, 2, 4, 8, 50):
        scheduler.set_timesteps(num_steps)
        index = grids.schedule.index(grids(num_steps, (4, 8, 8), "lcm").times)
        assert index[:-1].tolist() == scheduler.timesteps.tolist() and index[-1] == -1


def test_heun_has_two_entries_for_each_inner_time():
    scheduler = diffusers.HeunDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(9)
    grids = model_grids(scheduler)
    grid = grids(9, (4, 8, 8), "heun")
    assert grids.schedule.index(grid.times).tolist()[:-1] == scheduler.timesteps.tolist()


def test_the_models_own_spacing_is_the_default_and_can_be_overridden():
    grids = model_grids(diffusers.DDIMScheduler(**BETAS, timestep_spacing="trailing"))
    assert grids(10, (4, 8, 8), "ddim").times[0] == 1
    assert grids(10, (4, 8, 8), "ddim", "leading").times[0] < 1


def test_a_spacing_that_is_not_followed_is_said(caplog):
    VPGrids(VPSchedule.from_config(BETAS), {**BETAS, "use_karras_sigmas": True})
    assert not caplog.records
    VPGrids(VPSchedule.from_config(BETAS), {**BETAS, "use_beta_sigmas": True})
    assert "use_beta_sigmas is not followed: its steps are spaced leading here" in caplog.text
