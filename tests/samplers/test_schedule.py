import pytest
import torch
from samplers_toy import SD_BETAS

from samplers import FlowSchedule, VPSchedule, add_noise, dynamic_shift, grids, shift, zero_terminal_snr


def test_vp_table_entries_are_the_diffusers_table(vp):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    squares = (1 - betas).cumprod(0).double()
    alpha, sigma = vp(vp.time(torch.arange(1000)))
    torch.testing.assert_close(alpha, squares.sqrt(), rtol=1e-14, atol=0)
    torch.testing.assert_close(sigma, (1 - squares).sqrt(), rtol=1e-12, atol=0)


def test_t_zero_is_data_and_variance_is_preserved(vp):
    alpha, sigma = vp(torch.tensor([0.0, 0.0003, 0.31415, 1.0], dtype=torch.float64))
    assert alpha[0] == 1 and sigma[0] == 0
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(4, dtype=torch.float64), rtol=1e-14, atol=0)


def test_between_entries_the_ratio_is_linear(vp):
    alpha, sigma = vp(torch.tensor([0.5, 0.50025, 0.501], dtype=torch.float64))
    ratio = sigma / alpha
    torch.testing.assert_close(ratio[1], 0.75 * ratio[0] + 0.25 * ratio[2], rtol=1e-13, atol=0)


def test_index_is_the_exact_integer_on_the_table_even_through_float32(vp):
    index = torch.arange(-1, 1000).double()
    assert torch.equal(vp.index(vp.time(index)), index)
    assert torch.equal(vp.index(vp.time(index).float()), index)
    assert float(vp.index(vp.time([947.37]))) == pytest.approx(947.37, abs=1e-10)


def test_time_of_ratio_inverts_the_schedule(vp):
    t = torch.linspace(0.0002, 1, 777, dtype=torch.float64)
    alpha, sigma = vp(t)
    torch.testing.assert_close(vp.time_of_ratio(sigma / alpha), t, rtol=0, atol=1.5e-7)  # index() snaps


def test_batched_times_give_the_scalar_values(schedule):
    t = torch.rand(5, dtype=torch.float64)
    batched = torch.stack(schedule(t))
    single = torch.stack([torch.stack(schedule(time)) for time in t], 1)
    assert torch.equal(batched, single)


def test_zero_terminal_snr_ends_at_pure_noise_and_keeps_the_first_entry(vp):
    rescaled = VPSchedule.from_config({**SD_BETAS, "rescale_betas_zero_snr": True})
    alpha, sigma = rescaled(torch.tensor([0.001, 0.9995, 1.0], dtype=torch.float64))
    assert alpha[2] == 0 and sigma[2] == 1
    assert float(alpha[0]) == pytest.approx(float(vp(torch.tensor(0.001))[0]), rel=1e-6)
    before = rescaled(torch.tensor(0.999))
    ratio = before[0] / before[1] / 2  # alpha/sigma is linear towards the infinite entry
    torch.testing.assert_close(alpha[1] / sigma[1], ratio, rtol=1e-9, atol=0)


def test_zero_terminal_snr_scales_alpha_affinely():
    squares = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    alphas, rescaled = squares.sqrt(), zero_terminal_snr(squares).sqrt()
    expected = (alphas - alphas[2]) * alphas[0] / (alphas[0] - alphas[2])
    torch.testing.assert_close(rescaled, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", ["linear", "squaredcos_cap_v2"])
def test_other_beta_schedules_are_diffusers_own(kind):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(beta_schedule=kind)
    alpha, _ = VPSchedule.from_config(dict(scheduler.config))(torch.arange(1, 1001) / 1000)
    torch.testing.assert_close(alpha**2, scheduler.alphas_cumprod.double(), rtol=1e-6, atol=1e-12)


def test_trained_betas_are_taken_as_they_are():
    schedule = VPSchedule.from_config({"trained_betas": [0.1, 0.2, 0.5], "num_train_timesteps": 3})
    alpha, _ = schedule(torch.tensor([1 / 3, 2 / 3, 1.0], dtype=torch.float64))
    torch.testing.assert_close(alpha**2, torch.tensor([0.9, 0.72, 0.36]).double(), rtol=1e-6, atol=0)


def test_unknown_beta_schedule_is_named():
    with pytest.raises(ValueError, match="'sigmoid' is not known"):
        VPSchedule.from_config({"beta_schedule": "sigmoid"})


@pytest.mark.parametrize("table", [[0.5, 0.6], [1.0, 0.5], [[0.9, 0.5]]])
def test_what_is_no_table_is_refused(table):
    with pytest.raises(ValueError, match="strictly decreasing"):
        VPSchedule(torch.tensor(table))


def test_add_noise_mixes_each_row_at_its_own_time(schedule):
    x0, eps = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    alpha, sigma = schedule(t)
    rows = [alpha[i] * x0[i] + sigma[i] * eps[i] for i in range(3)]
    torch.testing.assert_close(add_noise(schedule, x0, eps, t), torch.stack(rows), rtol=1e-14, atol=0)


def test_add_noise_keeps_the_dtype_of_the_latents(schedule):
    x0, eps = torch.randn(2, 3, 4)
    assert add_noise(schedule, x0, eps, torch.rand(3)).dtype == torch.float32
    assert add_noise(schedule, x0, eps, torch.tensor(0.5, dtype=torch.float64)).dtype == torch.float32


def test_shift_fixes_the_ends_and_scales_the_odds():
    t = torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64)
    shifted = shift(t, 3.0)
    assert shifted[0] == 0 and shifted[2] == 1
    assert float(shifted[1] / (1 - shifted[1])) == pytest.approx(3 * 0.2 / 0.8)


def test_dynamic_shift_and_the_flow_grids_are_diffusers_own():
    diffusers = pytest.importorskip("diffusers")
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    sd3 = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    flux = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for num_steps in (1, 4, 10, 28):
        sd3.set_timesteps(num_steps)
        torch.testing.assert_close(grids.flow_twice_shifted(num_steps).times, sd3.sigmas.double(), rtol=1e-6, atol=1e-7)
        flux.set_timesteps(sigmas=torch.linspace(1, 1 / num_steps, num_steps).numpy(), mu=calculate_shift(1024))
        ours = grids.flow(num_steps, factor=dynamic_shift(1024))
        torch.testing.assert_close(ours.times, flux.sigmas.double(), rtol=1e-6, atol=1e-7)
    assert float(grids.flow_twice_shifted(10).times[-2]) == pytest.approx(0.0089, abs=5e-5)


def test_flow_is_a_straight_line():
    alpha, sigma = FlowSchedule()(torch.tensor(0.25))
    assert (float(alpha), float(sigma)) == (0.75, 0.25)


def test_linspace_is_numpys(vp):
    """0, 249.75, 499.5, 749.25, 999 to even; one step is the first of them."""
    rounded = {number: (grids.ddim(vp, number, "linspace").times[:-1] * 1000 - 1).round().tolist() for number in (1, 5)}
    assert rounded == {1: [0], 5: [999, 749, 500, 250, 0]}
