"""Adjoint matching on Gaussian data: its minimum shifts E[x_0] by lambda grad r times the variance of x_0, to all
digits; the adjoint is that of automatic differentiation; what is not memoryless is refused."""

import math
from itertools import pairwise

import pytest
import torch
from bundle_toys import BATCH, SEED, SHAPE, Bundle, at

from align.objectives._base import Parts
from align.objectives.adjoint_matching import AdjointMatching, AdjointMatchingConfig
from align.sampling import SamplingConfig, rollout
from rewards import Composite
from rewards.brightness import Brightness, BrightnessConfig
from samplers import FlowSchedule, GaussianDenoiser, Prediction, Rng, ddim, denoise, grids

LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1) / 4  # d brightness/d pixel, 2 x 2 pixels


class Shifted:
    """The exact denoiser of N(mean, 0.6 I); as "train" its output at step k of N is moved by theta_k."""

    schedule, kind = FlowSchedule(), Prediction.FLOW

    def __init__(self, num_steps, role="train", theta=None, bend=0.0):
        self.times, self.name, self.bend = grids.flow(num_steps).times, role, bend
        self.theta = torch.zeros(num_steps, *SHAPE, dtype=torch.float64, requires_grad=True) if theta is None else theta
        self.rows: list[tuple[str, int, bool]] = []

    def role(self, name):
        made = Shifted(len(self.times) - 1, name, self.theta, self.bend)
        made.rows = self.rows
        return made

    def __call__(self, x_t, t, cond):
        self.rows.append((self.name, len(x_t), torch.is_grad_enabled()))
        out = GaussianDenoiser(self.schedule, self.kind, std=math.sqrt(0.6))(x_t, t, cond) + self.bend * x_t.sin()
        return out + self.theta[int((self.times == t).nonzero())] if self.name == "train" else out


def made(num_steps, sampling=None, **config):
    said = sampling or {"guidance_scale": 1.0}
    block = SamplingConfig(**{"num_steps": num_steps, "eta": 1.0} | said)
    rewards = Composite({"brightness": Brightness(BrightnessConfig())})
    config = {"scale": 2.0, "num_trained": num_steps - 1} | config
    return AdjointMatching(AdjointMatchingConfig(**config), Parts(Bundle(), block, rewards, SEED))


def gradient(objective, network):
    loss = objective(network, BATCH)
    return torch.autograd.grad(loss.per_sample.sum(), network.theta)[0]


def variance_of_the_chain(num_steps):
    """Var(x_0) of DDIM(1) from t = 1: Var_s = k^2 Var_t + std^2, k of the exact mean."""
    times, found = grids.flow(num_steps).times, torch.tensor(1.0, dtype=torch.float64)
    for t, s in pairwise(times):
        (a, g), (b, h) = FlowSchedule()(t), FlowSchedule()(s)
        std = ddim(torch.zeros(1), torch.zeros(1), a, g, b, h, eta=1.0).std
        k = (b * a * 0.6 + (h**2 - std**2).sqrt() * g) / (a**2 * 0.6 + g**2)
        found = k**2 * found + std**2
    return float(found)


@pytest.mark.parametrize(
    ("num_steps", "known", "with_a_k"), [(5, 0.268, 0.131), (10, 0.381, 0.279), (50, 0.540, 0.512)]
)
def test_the_minimum_shifts_the_mean_by_the_variance_of_the_chain(num_steps, known, with_a_k):
    """The loss is quadratic in theta, so that one Newton step from any point is its minimum."""
    objective, network = made(num_steps), Shifted(num_steps)
    at_zero = gradient(objective, network)
    with torch.no_grad():
        network.theta += 1
    curvature = gradient(objective, network) - at_zero
    best = torch.where(curvature != 0, -at_zero / curvature, torch.zeros_like(curvature))
    rng = Rng(SEED, BATCH.indices)
    ends = [
        rollout(objective.sampling, objective.model, Shifted(num_steps, theta=theta), BATCH.prompts, rng)
        for theta in (torch.zeros_like(best), best)
    ]
    shift = (ends[1].x0 - ends[0].x0) / (2.0 * LUMA)
    exact = variance_of_the_chain(num_steps)
    assert exact == pytest.approx(known, abs=6e-4)
    torch.testing.assert_close(shift, torch.full_like(shift, exact), rtol=2e-5, atol=0)
    assert abs(exact - with_a_k) > 0.02, "what the pairing with a_k would have given"


def test_the_lean_adjoint_is_that_of_automatic_differentiation():
    """Through the base's means with the noise held, on a network whose Jacobian depends on x."""
    objective, network = made(6), Shifted(6, bend=0.4)
    rng = Rng(SEED, BATCH.indices, BATCH.step)
    found = rollout(objective.sampling, objective.model, network.role("train"), BATCH.prompts, rng, keep="states")
    cond, chosen = objective.model.text.encode(BATCH.prompts), [0, 2, 4]
    end, _ = objective.at_the_end(found.x0, BATCH.prompts)
    adjoints = objective.lean(network.role("reference"), found, end, cond, chosen)
    for k in chosen:
        x = start = found.states[k + 1].detach().requires_grad_()
        for i in range(k + 1, 6):
            t, s = (network.schedule(time) for time in found.times[i : i + 2])
            step = ddim(*denoise(network.role("reference"), x, found.times[i], cond), *t, *s, eta=1.0)
            x = step.mean + step.std * rng.normal(f"step/{i}", x)
        torch.testing.assert_close(x, found.x0, rtol=1e-5, atol=1e-5)
        losses, _ = objective.losses(x, BATCH.prompts)
        torch.testing.assert_close(adjoints[k], torch.autograd.grad(losses.sum(), start)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("guided", "drawing", "training"), [("rollout", 6, 3), ("nothing", 3, 3), ("everything", 6, 6)]
)
@pytest.mark.parametrize("said", [{"guidance_scale": 4.0}, {"guidance": {"scale": 4.0}}], ids=["scale", "block"])
def test_where_guidance_acts(guided, drawing, training, said):
    objective, network = made(5, said, guided=guided), Shifted(5)
    objective(network, BATCH)
    rows = {(name, grad): count for name, count, grad in network.rows}
    assert rows["train", False] == drawing and rows["train", True] == training
    assert {count for name, count, _ in network.rows if name == "reference"} == {training}
    assert ("agree" in objective.notes[0]) and guided in objective.notes[0]


def test_half_of_the_trained_steps_are_early_and_the_last_is_never_one():
    objective, times = made(20, num_trained=4), grids.flow(20).times
    seen = set()
    for seed in range(40):
        chosen = objective.chosen(times, torch.Generator().manual_seed(seed))
        assert len({*chosen}) == 4 and sum(k < 11 for k in chosen) == 2
        seen |= {*chosen}
    assert max(seen) == 18, "step 19 ends on data and draws no noise"
    assert made(5, num_trained=5).chosen(grids.flow(5).times, torch.Generator()) == [0, 1, 2, 3]


def test_rows_beyond_the_running_quantile_are_dropped_and_the_rest_counts_whole():
    objective, network = made(5, quantile=0.5), Shifted(5, bend=0.4)  # rows differ
    first = objective(network, BATCH)
    assert first.weight.tolist() == [1, 1, 1], "nothing is known yet"
    objective.after_update(lambda rows: rows)
    objective.recent = [first.per_sample.detach().sort().values.tolist()]
    second = objective(network, BATCH)
    assert second.weight.sum() == 2 and second.metrics["dropped"].sum() == 1
    assert second.weight[second.per_sample.argmax()] == 0
    assert torch.equal(second.per_sample, first.per_sample), "dropped, not clipped"


def test_the_quantile_is_of_all_processes_rows_and_survives_a_checkpoint():
    whole, cut, network = made(5), made(5), Shifted(5)
    whole(network, BATCH)
    whole.after_update(lambda rows: rows)
    cut(network, BATCH[:1])
    cut(network, BATCH[1:])
    cut.after_update(lambda rows: rows.flip(0))
    assert whole.recent[0] == pytest.approx(cut.recent[0], rel=1e-5)
    again = made(5)
    again.load_state_dict(whole.state_dict())
    assert torch.equal(again(network, at(3)).weight, whole(network, at(3)).weight) and again.recent == whole.recent


@pytest.mark.parametrize(
    ("sampling", "key"),
    [
        ({}, "sampling.eta"),
        ({"eta": 0.5}, "sampling.eta"),
        ({"step_rule": "dpmpp_2m"}, "sampling.eta"),
        ({"step_rule": "lcm"}, "sampling.eta"),
        ({"noise_law": "flow_sde", "eta": 1.0}, "sampling.noise_law"),
        ({"noise_law": "cps"}, "sampling.noise_law"),
    ],
)
def test_what_is_not_memoryless_is_refused_with_its_reason(sampling, key):
    ((found, text),) = AdjointMatchingConfig().conflicts({"sampling": SamplingConfig(num_steps=8, **sampling)})
    assert found == key and "memoryless" in text and "Use step_rule" in text


@pytest.mark.parametrize("sampling", [{"eta": 1.0}, {"step_rule": "euler_ancestral"}, {"noise_law": "ddim"}])
def test_memoryless_samplers_are_taken(sampling):
    assert not list(AdjointMatchingConfig().conflicts({"sampling": SamplingConfig(num_steps=8, **sampling)}))
    ((key, _),) = AdjointMatchingConfig(num_trained=9).conflicts({"sampling": SamplingConfig(num_steps=8, **sampling)})
    assert key == ".num_trained"
