import math

import pytest
import torch

from samplers import (
    FlowSchedule,
    GaussianDenoiser,
    Prediction,
    Rng,
    Transition,
    constant,
    ddim,
    denoise,
    euler,
    euler_ancestral,
    grids,
    sample,
)

STD = 0.7
T, S = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.35, dtype=torch.float64)


def gaussian(schedule, kind=Prediction.V):
    return GaussianDenoiser(schedule, kind, std=STD), torch.full((4, 3), 0.4, dtype=torch.float64)


def variance(alpha, sigma):
    return alpha**2 * STD**2 + sigma**2


@pytest.mark.parametrize("kind", list(Prediction))
def test_one_step_on_gaussian_data_is_the_closed_form(schedule, kind):
    data, mean = gaussian(schedule, kind)
    x_t = torch.randn(4, 3, dtype=torch.float64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(T), schedule(S)
    step = ddim(*denoise(data, x_t, T, constant(mean)), alpha_t, sigma_t, alpha_s, sigma_s)
    k = (alpha_s * alpha_t * STD**2 + sigma_s * sigma_t) / variance(alpha_t, sigma_t)
    torch.testing.assert_close(step.mean, alpha_s * mean + k * (x_t - alpha_t * mean), rtol=1e-12, atol=1e-12)
    assert step.deterministic


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_variance_of_a_stochastic_step_is_the_closed_form(schedule, eta):
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(T), schedule(S)
    std = eta * (sigma_s / sigma_t) * (sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2).sqrt()
    gain = alpha_s * alpha_t * STD**2 + (sigma_s**2 - std**2).sqrt() * sigma_t
    expected = (gain / variance(alpha_t, sigma_t)) ** 2 * variance(alpha_t, sigma_t) + std**2

    data, mean = gaussian(schedule)
    x_t = alpha_t * 0.4 + variance(alpha_t, sigma_t).sqrt() * torch.randn(200_000, 1, dtype=torch.float64)
    many = constant(mean[:1, :1].expand(len(x_t), 1))
    step = ddim(*denoise(data, x_t, T, many), alpha_t, sigma_t, alpha_s, sigma_s, eta=eta)
    assert float(step.std) == pytest.approx(float(std), rel=1e-12)
    drawn = step.sample(torch.randn_like(x_t))
    assert float(drawn.var()) == pytest.approx(float(expected), rel=4 * math.sqrt(2 / len(x_t)))


def test_eta_one_is_the_ddpm_posterior(schedule):
    """mean and variance of q(x_s | x_t, x0): Ho et al. (arXiv 2006.11239) eq. 6-7, for any schedule."""
    x0, eps = torch.randn(2, 3, 5, dtype=torch.float64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(T), schedule(S)
    x_t = alpha_t * x0 + sigma_t * eps
    forward = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2  # variance of x_t given x_s
    posterior_std = (forward * sigma_s**2 / sigma_t**2).sqrt()
    mean = alpha_t / alpha_s * sigma_s**2 / sigma_t**2 * x_t + alpha_s * forward / sigma_t**2 * x0
    step = ddim(x0, eps, alpha_t, sigma_t, alpha_s, sigma_s, eta=1.0)
    torch.testing.assert_close(step.mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(step.std, posterior_std, rtol=1e-12, atol=0)


def test_the_last_step_to_data_is_finite_and_deterministic_for_every_eta(schedule):
    x0, eps = torch.randn(2, 3, 5, dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    for eta in (0.0, 1.0):
        step = ddim(x0, eps, *schedule(S), *schedule(zero), eta=eta)
        assert torch.equal(step.mean, x0) and step.deterministic
    first = ddim(x0, eps, *FlowSchedule()(zero + 1), *FlowSchedule()(S), eta=1.0)
    torch.testing.assert_close(first.mean, 0.65 * x0, rtol=1e-12, atol=1e-12)
    assert float(first.std) == pytest.approx(0.35)


def test_euler_is_ddim_and_on_a_flow_a_straight_step():
    x0, eps = torch.randn(2, 3, 5, dtype=torch.float64)
    flow = FlowSchedule()
    step = euler(x0, eps, *flow(T), *flow(S))
    x_t = (1 - T) * x0 + T * eps
    torch.testing.assert_close(step.mean, x_t + (S - T) * (eps - x0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_euler_ancestral_is_k_diffusions_formula(schedule, eta):
    x0, eps, z = torch.randn(3, 3, 5, dtype=torch.float64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(T), schedule(S)
    rho_t, rho_s = sigma_t / alpha_t, sigma_s / alpha_s
    rho_up = eta * (rho_s**2 * (rho_t**2 - rho_s**2) / rho_t**2).sqrt()
    rho_down = (rho_s**2 - rho_up**2).sqrt()
    bar_t = x0 + rho_t * eps
    bar_s = bar_t + (rho_down - rho_t) * eps + rho_up * z
    step = euler_ancestral(x0, eps, alpha_t, sigma_t, alpha_s, sigma_s, eta=eta)
    torch.testing.assert_close(step.sample(z), alpha_s * bar_s, rtol=1e-12, atol=1e-12)


def test_euler_ancestral_defaults_to_full_noise():
    x0, eps = torch.randn(2, 3, 5, dtype=torch.float64)
    levels = (*FlowSchedule()(T), *FlowSchedule()(S))
    assert torch.equal(euler_ancestral(x0, eps, *levels).std, ddim(x0, eps, *levels, eta=1.0).std)


def test_stochastic_sampling_reaches_the_data_distribution(vp):
    data = GaussianDenoiser(vp, Prediction.EPSILON, std=STD)
    x_T = torch.randn(250, 32, dtype=torch.float64)
    cond = constant(torch.full((250, 32), 0.4, dtype=torch.float64))
    x0 = sample(data, x_T, grids.ddim(vp, 200, offset=1), cond, eta=1.0, rng=Rng(0, range(250))).x0
    assert float(x0.mean()) == pytest.approx(0.4, abs=0.04)
    assert float(x0.std()) == pytest.approx(STD, rel=0.05)


def test_log_prob_is_torchs_normal_averaged_over_dimensions():
    mean, x = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    for std in (torch.tensor(0.3, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.1):
        scale = std.reshape(-1, 1, 1, 1)
        expected = torch.distributions.Normal(mean, scale).log_prob(x).flatten(1).mean(1)
        torch.testing.assert_close(Transition(mean, std).log_prob(x), expected, rtol=1e-12, atol=1e-12)


def test_log_prob_of_half_precision_latents_is_computed_in_float32():
    mean, x = torch.randn(2, 4, 100).half()
    got = Transition(mean, torch.tensor(0.01)).log_prob(x)
    expected = Transition(mean.float(), torch.tensor(0.01)).log_prob(x.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_a_deterministic_step_has_no_density_and_a_stochastic_one_needs_noise():
    mean = torch.randn(2, 3)
    with pytest.raises(ValueError, match="std = 0 has no density"):
        Transition(mean, torch.zeros(())).log_prob(mean)
    with pytest.raises(ValueError, match="pass the noise"):
        Transition(mean, torch.ones(())).sample()


def test_a_transition_with_one_std_a_row_draws_each_row_with_its_own():
    mean, z = torch.randn(2, 3, 4)
    std = torch.tensor([0.0, 1.0, 2.0])
    expected = torch.stack([mean[i] + std[i] * z[i] for i in range(3)])
    torch.testing.assert_close(Transition(mean, std).sample(z), expected)
