"""DRaFT on the Gaussian toy, in float64: gradients, losses and the penalty against their closed forms.

The "adapter" is one number theta added to the predicted x0. One DDIM step then has d x_s/d theta = g_s with

    g_s = k g_t + (alpha_s - sigma_s alpha_t/sigma_t),   k = (alpha_s alpha_t v^2 + sigma_s sigma_t)/V_t

and g = 0 before the first step that carries gradient.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from align.data.prompts import PromptBatch
from align.models.sd import SDConfig
from align.objectives._base import Parts
from align.objectives.draft import Draft, DraftConfig
from align.sampling import SamplingConfig
from rewards import Composite
from rewards.brightness import Brightness, BrightnessConfig
from samplers import FlowSchedule, GaussianDenoiser, Prediction, Rng, constant, grids

STD, SHAPE, SEED = 0.7, (3, 2, 2), 5
BATCH = PromptBatch(("a", "b", "a"), (4, 5, 6), 2)
MEANS = {"": 0.0, "a": 0.3, "b": -0.2}


class Words:
    def encode(self, prompts, grad=False):
        return constant(torch.stack([torch.full(SHAPE, MEANS[p], dtype=torch.float64) for p in prompts]))


class Toy:
    """A bundle whose pixels are its latents, for a network that is the exact denoiser."""

    schedule, kind, text = FlowSchedule(), Prediction.FLOW, Words()
    network = nn.Linear(1, 1).double()

    def __init__(self):
        self.codec = SimpleNamespace(decode=lambda x0: x0)

    def latent_shape(self, image_size):
        return SHAPE

    def grids(self, num_steps, latent_shape, step_rule, spacing):
        return grids.flow(num_steps)


class Roles:
    """theta on "train", another Gaussian as "reference"."""

    def __init__(self, theta: Tensor, reference_std: float = STD):
        schedule = FlowSchedule()
        self.roles = {
            "train": GaussianDenoiser(schedule, Prediction.FLOW, STD, theta),
            "reference": GaussianDenoiser(schedule, Prediction.FLOW, reference_std),
        }

    def role(self, name):
        return self.roles[name]


def objective(config: dict | None = None, **sampling: Any) -> Draft:
    block = SamplingConfig(**{"num_steps": 4, "guidance_scale": 2.0, "last_k": 1, **sampling})
    reward = Composite({"brightness": Brightness(BrightnessConfig())})
    return Draft(DraftConfig(**(config or {})), Parts(Toy(), block, reward, SEED))


def theta(value: float = 0.1) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def closed_form(num_steps: int, last_k: int) -> float:
    alphas, sigmas = FlowSchedule()(grids.flow(num_steps).times)
    g = 0.0
    for i in range(num_steps):
        a_t, s_t, a_s, s_s = alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1]
        k = (a_s * a_t * STD**2 + s_s * s_t) / (a_t**2 * STD**2 + s_t**2)
        g = k * g + (a_s - s_s * a_t / s_t) if i >= num_steps - last_k else 0.0
    return float(g)


@pytest.mark.parametrize("checkpoint_steps", [True, False])
@pytest.mark.parametrize("last_k", [1, 3, 4])
def test_the_gradient_is_the_closed_form(last_k, checkpoint_steps):
    parameter = theta()
    loss = objective(last_k=last_k, checkpoint_steps=checkpoint_steps)(Roles(parameter), BATCH)
    (gradient,) = torch.autograd.grad(loss.per_sample.mean(), parameter)
    # brightness is a mean of pixels with weights that sum to one: d(-r)/d theta = -g
    assert float(gradient) == pytest.approx(-closed_form(4, last_k), rel=1e-9)
    assert closed_form(4, 4) != pytest.approx(closed_form(4, 3), rel=1e-2)


def test_full_is_k_equal_to_the_number_of_steps():
    gradients = []
    for window in ({"last_k": 4}, {"window": "full"}):
        parameter = theta()
        loss = objective(**window)(Roles(parameter), BATCH)
        gradients += torch.autograd.grad(loss.per_sample.mean(), parameter)
    assert torch.equal(*gradients)


def test_the_loss_is_minus_the_reward_and_rows_do_not_depend_on_the_cut():
    whole = objective()(Roles(theta()), BATCH)
    assert torch.equal(whole.per_sample.detach(), -whole.metrics["reward/total"])
    assert torch.equal(whole.metrics["reward/brightness"], whole.metrics["reward/total"])
    assert torch.equal(whole.weight, torch.ones(3, dtype=torch.float64))
    assert not any(value.requires_grad for value in whole.metrics.values())
    parts = [objective()(Roles(theta()), piece).per_sample for piece in (BATCH[:1], BATCH[1:])]
    torch.testing.assert_close(torch.cat(parts), whole.per_sample, rtol=1e-12, atol=0)


def test_target_and_margin_forms():
    reward = objective()(Roles(theta()), BATCH).metrics["reward/total"]
    middle = float(reward.median())
    target = objective({"target": middle})(Roles(theta()), BATCH).per_sample
    torch.testing.assert_close(target.detach(), (reward - middle).abs())
    margin = objective({"margin": middle})(Roles(theta()), BATCH).per_sample
    torch.testing.assert_close(margin.detach(), (middle - reward).clamp(min=0))
    assert 0 < (margin == 0).sum() < 3
    with pytest.raises(ValidationError, match="target and margin are two forms"):
        DraftConfig(target=1.0, margin=1.0)


def test_lv_averages_one_plus_n_gradients_at_the_last_steps_level():
    """x0_hat(x_1) = m + gain (x_1 - alpha_1 m) + theta at x_1 = alpha_1 sg(x_0) + sigma_1 eps_j: each adds 1."""
    parameter, n = theta(), 2
    plain = objective()(Roles(parameter), BATCH)
    loss = objective({"num_noises": n})(Roles(parameter), BATCH)
    (gradient,) = torch.autograd.grad(loss.per_sample.mean(), parameter)
    assert float(gradient) == pytest.approx(-(closed_form(4, 1) + n) / (1 + n), rel=1e-9)

    times = grids.flow(4).times
    alpha, sigma = FlowSchedule()(times[3])
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    rng = Rng(SEED, BATCH.indices, BATCH.step)
    x0 = sampled(theta())
    mean = torch.stack([torch.full(SHAPE, 2 * MEANS[p], dtype=torch.float64) for p in BATCH.prompts])  # guided by 2
    expected = plain.per_sample.detach()
    luma = Brightness(BrightnessConfig())
    for j in range(n):
        x_1 = alpha * x0 + sigma * rng.normal(f"renoise/{j}", x0)
        x0_hat = mean + gain * (x_1 - alpha * mean) + 0.1
        expected = expected - luma(x0_hat, BATCH.prompts)
    torch.testing.assert_close(loss.per_sample.detach(), expected / (1 + n))
    assert loss.metrics["reward/total"].shape == (3,)


def sampled(parameter: Tensor) -> Tensor:
    """x_0 of BATCH, taken from what the reward is shown."""
    seen = []
    watch = objective()
    watch.model.codec = SimpleNamespace(decode=lambda x0: (seen.append(x0.detach()), x0)[1])
    watch(Roles(parameter), BATCH)
    return seen[0]


def test_the_penalty_is_the_mean_squared_gap_on_the_steps_with_gradient():
    """Flow: out = eps - x0, and theta moves x0 by theta, eps by -alpha/sigma theta: the gap is theta/sigma."""
    sigmas = FlowSchedule()(grids.flow(4).times)[1]
    for last_k in (1, 2, 4):
        loss = objective({"kl": 3.0}, last_k=last_k)(Roles(theta(0.2)), BATCH)
        kl = float((0.2 / sigmas[4 - last_k : 4]).square().mean())
        torch.testing.assert_close(loss.metrics["kl"], torch.full((3,), kl, dtype=torch.float64))
        torch.testing.assert_close(loss.per_sample.detach(), 3 * kl - loss.metrics["reward/total"])


def test_the_penaltys_gradient_equals_finite_differences_through_x_t_too():
    """A reference of another width: its output at x_t depends on theta, through x_t."""

    def value(at: float) -> Tensor:
        draft = objective({"kl": 3.0}, last_k=4)
        return draft(Roles(theta(at), reference_std=1.3), BATCH).per_sample.mean()

    parameter = theta(0.2)
    loss = objective({"kl": 3.0}, last_k=4)(Roles(parameter, reference_std=1.3), BATCH).per_sample.mean()
    (gradient,) = torch.autograd.grad(loss, parameter)
    numeric = (value(0.2 + 1e-5) - value(0.2 - 1e-5)) / 2e-5
    assert float(gradient) == pytest.approx(float(numeric.detach()), rel=1e-7)


@pytest.mark.parametrize("detached", [False, True])
def test_the_penaltys_gradient_where_inputs_are_detached(detached):
    """The gap is theta/sigma whatever x_t is: its square has the gradient 2 theta/sigma^2 and no part through x_t."""
    sigmas, found = FlowSchedule()(grids.flow(4).times)[1], []
    for kl in (3.0, 0.0):
        parameter = theta(0.2)
        loss = objective({"kl": kl}, last_k=4, detach_input=detached)(Roles(parameter), BATCH).per_sample.mean()
        found.append(float(torch.autograd.grad(loss, parameter)[0]))
    assert found[0] - found[1] == pytest.approx(float(3 * 2 * 0.2 * (1 / sigmas[:4].square()).mean()), rel=1e-6)


def test_a_recipe_without_gradient_steps_is_refused():
    ((key, text),) = DraftConfig().conflicts({"sampling": SamplingConfig(last_k=0)})
    assert key == "sampling.last_k" and "no step would carry" in text
    assert not list(DraftConfig().conflicts({"sampling": SamplingConfig(last_k=1)}))
    over = {"roles": [["train", 0.5], ["reference", 0]]}  # fine in itself: most methods choose their steps themselves
    ((key, text),) = DraftConfig().conflicts({"sampling": SamplingConfig(**over)})
    assert key == "sampling.roles" and "Widen the window" in text
    assert not list(DraftConfig().conflicts({"sampling": SamplingConfig(**over, last_k=2)}))
    assert objective(**over, last_k=2).same_steps and not objective(**over, window="bernoulli").same_steps


def test_a_reference_whose_blocks_are_recomputed_later_is_refused():
    """They would be recomputed in the backward pass, where the adapter is on again."""
    parts = {"sampling": SamplingConfig(last_k=2), "model": SDConfig(checkpoint="a/b", checkpoint_blocks=True)}
    ((key, text),) = DraftConfig(kl=0.1).conflicts(parts)
    assert key == "model.checkpoint_blocks" and "recomputed with the adapter on" in text
    assert not list(DraftConfig().conflicts(parts))
    assert not list(DraftConfig(kl=0.1).conflicts({**parts, "sampling": SamplingConfig(last_k=1)}))
