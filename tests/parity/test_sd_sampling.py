"""Our rollouts against diffusers' own StableDiffusionPipeline: same weights, same x_T, same latents.

Each tolerance is about five times what was measured. In float64 what is left of the difference for DDIM is the float32
table that diffusers steps with; its Euler and DPM-Solver++ steps compute in float32 altogether. To see what these
tolerances can see: one wrong index of t in every call moves the latents by 5e-2 or more.
"""

import functools

import pytest
import torch

from align.models.sd import SDConfig, StableDiffusion
from align.sampling import SamplingConfig, rollout
from samplers import DPMpp2M, Rng, VPSchedule, cfg, ddim, euler, euler_ancestral, lcm, sample

diffusers = pytest.importorskip("diffusers")

PROMPTS = ["a red circle", "two stars"]
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
RULES = {
    "ddim": (ddim, "DDIMScheduler"),
    "euler": (euler, "EulerDiscreteScheduler"),
    "euler_ancestral": (euler_ancestral, "EulerAncestralDiscreteScheduler"),
    "dpmpp_2m": (DPMpp2M, "DPMSolverMultistepScheduler"),
    "lcm": (lcm, "LCMScheduler"),
}


@pytest.fixture(scope="module")
def pipelines(tiny_sd_factory):
    @functools.cache
    def build(dtype, items):
        pipeline = tiny_sd_factory(**dict(items))
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            module.to(dtype)
        return pipeline, dict(pipeline.scheduler.config)

    return lambda dtype=torch.float64, **scheduler: build(dtype, tuple(sorted(scheduler.items())))


def noise_like(z):
    return Rng(0, range(len(z)))


def theirs(pipeline, config, rule, spacing, num_steps, z, guidance, eta=0.0, output_type="latent"):
    """The pipeline's latents. Where its scheduler draws noise, it is handed ours."""
    scheduler = getattr(diffusers, RULES[rule][1]).from_config({**config, "timestep_spacing": spacing})
    module, drawn = __import__(scheduler.__module__, fromlist=["_"]), iter(range(num_steps))

    def randn_tensor(shape, *, dtype, **_):
        return noise_like(z).normal(f"step/{next(drawn)}", z).to(dtype)

    pipeline.scheduler = scheduler
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(module, "randn_tensor"):
            patch.setattr(module, "randn_tensor", randn_tensor)
        return pipeline(
            PROMPTS,
            latents=z.clone(),
            num_inference_steps=num_steps,
            guidance_scale=guidance,
            eta=eta,
            output_type=output_type,
        ).images


def ours(pipeline, config, rule, spacing, num_steps, z, guidance, eta=None, schedule=None):
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(config)
    model = StableDiffusion(SDConfig(checkpoint="tiny"), pipeline)
    grid = model.grids(num_steps, z.shape[1:], rule, None if rule == "lcm" else spacing)
    if schedule is not None:
        model.schedule = schedule
    denoiser = cfg(model.denoiser(), model.text.encode([""]), guidance)
    return sample(
        denoiser,
        z * grid.init_scale,
        grid,
        model.text.encode(PROMPTS),
        step=RULES[rule][0],
        eta=eta,
        rng=noise_like(z),
    ).x0


def difference(pipelines, rule, spacing, num_steps, *, dtype=torch.float64, guidance=5.0, eta=None, **scheduler):
    pipeline, config = pipelines(dtype, **scheduler)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = ours(pipeline, config, rule, spacing, num_steps, z, guidance, eta)
    expected = theirs(pipeline, config, rule, spacing, num_steps, z, guidance, eta or 0.0)
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("num_steps", [7, 20, 30, 50])
def test_ddim_leading_at_every_number_of_steps(pipelines, num_steps):
    assert difference(pipelines, "ddim", "leading", num_steps) < 3e-7


@pytest.mark.parametrize("num_steps", [20, 50])
def test_ddim_trailing_where_the_steps_divide_the_table(pipelines, num_steps):
    assert difference(pipelines, "ddim", "trailing", num_steps) < 3e-7


@pytest.mark.parametrize("num_steps", [7, 30])
def test_ddim_trailing_elsewhere_differs_on_purpose(pipelines, num_steps):
    """diffusers steps from i to i - 1000//N, past or short of the next time of its own list; we step to that time."""
    assert 1e-3 < difference(pipelines, "ddim", "trailing", num_steps) < 0.1


def test_ddim_trailing_elsewhere_is_diffusers_own_step_between_consecutive_times(pipelines):
    """The same difference, taken away: their scheduler told to step to the next time gives our latents."""
    pipeline, config = pipelines()
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    num_steps = 7

    class Gap(int):
        def __rfloordiv__(self, other):
            return int(self)

    class Chained(diffusers.DDIMScheduler):
        def step(self, model_output, timestep, sample, **options):
            following = self.timesteps[self.timesteps < timestep]
            gap = int(timestep - following[0]) if len(following) else int(timestep) + 1
            self.num_inference_steps = Gap(gap)  # step() goes down by num_train_timesteps // num_inference_steps
            return super().step(model_output, timestep, sample, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RULES, "ddim", (ddim, "DDIMScheduler"))
        patch.setattr(diffusers, "DDIMScheduler", Chained)
        expected = theirs(pipeline, config, "ddim", "trailing", num_steps, z, 5.0)
    found = ours(pipeline, config, "ddim", "trailing", num_steps, z, 5.0)
    assert float((found - expected).norm() / expected.norm()) < 3e-7


@pytest.mark.parametrize("rule", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [7, 20])
def test_euler_and_dpmpp_on_every_spacing(pipelines, rule, spacing, num_steps):
    assert difference(pipelines, rule, spacing, num_steps) < 1e-6


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_zero_terminal_snr_with_v_prediction(pipelines, spacing):
    assert difference(pipelines, "ddim", spacing, 20, **ZERO_SNR) < 2e-6


@pytest.mark.parametrize("rule", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_zero_terminal_snr_is_exact_here_and_nearly_so_in_diffusers_euler_and_dpmpp(pipelines, rule, spacing):
    """They replace alpha_T = 0 by 2^-12, "close to 0 without being 0"; with that entry in our table we agree."""
    assert 5e-5 < difference(pipelines, rule, spacing, 20, **ZERO_SNR) < 5e-3
    pipeline, config = pipelines(**ZERO_SNR)
    squares = diffusers.DDIMScheduler.from_config(config).alphas_cumprod.clone()
    squares[-1] = 2**-24
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    scale = (1 - 2**-24) ** 0.5 if rule == "euler" else 1.0  # sigma_T of that table
    found = ours(pipeline, config, rule, spacing, 20, z * scale, 5.0, schedule=VPSchedule(squares))
    expected = theirs(pipeline, config, rule, spacing, 20, z, 5.0)
    assert float((found - expected).norm() / expected.norm()) < 2e-6


def test_plain_v_prediction(pipelines):
    assert difference(pipelines, "ddim", "leading", 20, prediction_type="v_prediction") < 3e-7
    assert difference(pipelines, "dpmpp_2m", "linspace", 20, prediction_type="v_prediction") < 1e-6


def test_x0_prediction(pipelines):
    assert difference(pipelines, "ddim", "leading", 20, prediction_type="sample") < 2e-6


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_at_eta_one_with_the_noise_injected(pipelines, spacing):
    assert difference(pipelines, "ddim", spacing, 20, eta=1.0) < 3e-7


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_euler_ancestral_with_the_noise_injected(pipelines, spacing):
    assert difference(pipelines, "euler_ancestral", spacing, 20) < 1e-6


@pytest.mark.parametrize("num_steps", [1, 4])
def test_lcm_differs_by_its_boundary_condition_only(pipelines, num_steps):
    assert difference(pipelines, "lcm", "leading", num_steps, guidance=1.0) < 1e-5


def test_without_guidance(pipelines):
    assert difference(pipelines, "ddim", "leading", 20, guidance=1.0) < 3e-7


def test_set_alpha_to_one_ends_at_clean_data(pipelines):
    assert difference(pipelines, "ddim", "leading", 20, set_alpha_to_one=True) < 3e-7
    assert difference(pipelines, "ddim", "leading", 20, steps_offset=0) < 3e-7


def test_in_float32(pipelines):
    assert difference(pipelines, "ddim", "leading", 20, dtype=torch.float32) < 5e-6
    assert difference(pipelines, "dpmpp_2m", "trailing", 20, dtype=torch.float32) < 5e-6


def test_a_wrong_ending_would_be_seen(pipelines):
    """set_alpha_to_one=False ends at t = 1/1000; ending at 0 instead is 4e-3 to 1e-2 off on a trained model."""
    pipeline, config = pipelines()
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    wrong = ours(pipeline, {**config, "set_alpha_to_one": True}, "ddim", "leading", 20, z, 5.0)
    expected = theirs(pipeline, config, "ddim", "leading", 20, z, 5.0)
    assert float((wrong - expected).norm() / expected.norm()) > 1e-3


def test_pixels_are_the_pipelines_images(pipelines):
    pipeline, config = pipelines(torch.float32)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    latents = ours(pipeline, config, "ddim", "leading", 7, z, 5.0)
    pixels = StableDiffusion(SDConfig(checkpoint="tiny"), pipeline).codec.decode(latents)
    expected = theirs(pipeline, config, "ddim", "leading", 7, z, 5.0, output_type="pt")
    assert pixels.shape == (2, 3, 32, 32)
    torch.testing.assert_close(pixels, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("timesteps", [[800], [800, 400]])
def test_timesteps_by_hand(pipelines, timesteps):
    """TCDScheduler, of Hyper-SD, takes them too; at its eta = 0 it steps as DDIM."""
    pipeline, config = pipelines(torch.float64)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(config)
    model = StableDiffusion(SDConfig(checkpoint="tiny"), pipeline)
    block = SamplingConfig(num_steps=len(timesteps), timesteps=tuple(timesteps), guidance_scale=5.0)
    found = rollout(block, model, model.denoiser(), PROMPTS, Rng(0, [0, 1]), x_T=z).x0
    pipeline.scheduler = diffusers.TCDScheduler.from_config(config)
    expected = pipeline(
        PROMPTS, latents=z.clone(), timesteps=timesteps, guidance_scale=5.0, eta=0.0, output_type="latent"
    ).images
    assert float((found - expected).norm() / expected.norm()) < 3e-7


def test_a_timestep_by_hand_of_an_lcm_ends_at_the_image(pipelines):
    """As Hyper-SDXL's one-step UNet is published, with LCMScheduler at t = 800."""
    pipeline, config = pipelines(torch.float64)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    pipeline.scheduler = diffusers.LCMScheduler.from_config(config)
    model = StableDiffusion(SDConfig(checkpoint="tiny"), pipeline)
    found = {}
    for rule in ("lcm", "ddim"):
        block = SamplingConfig(num_steps=1, timesteps=(800,), step_rule=rule, guidance_scale=1.0)
        found[rule] = rollout(block, model, model.denoiser(), PROMPTS, Rng(0, [0, 1]), x_T=z).x0
    expected = pipeline(PROMPTS, latents=z.clone(), timesteps=[800], guidance_scale=1.0, output_type="latent").images
    gaps = {rule: float((x0 - expected).norm() / expected.norm()) for rule, x0 in found.items()}
    assert gaps["lcm"] < 1e-5 and gaps["ddim"] > 1e-4
