"""LeapAlign and FlowBP on Gaussian data, whose velocity is shifted by a constant theta: what of the exact derivative
d x_0/d theta each topology keeps, at each draw; the path's value is the sampler's to the bit."""

import math
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from bundle_toys import BATCH, SEED, SHAPE, Bundle, Network, at, steps, through_input

from align.objectives._base import Parts
from align.objectives._paths import closeness, drawn, scaled, straight
from align.objectives.draft import Draft
from align.objectives.flowbp import FlowBP, FlowBPConfig, lagrange_weights, quadrature, segments
from align.objectives.leapalign import LeapAlign, LeapAlignConfig
from align.sampling import SamplingConfig
from rewards import Composite
from rewards.brightness import Brightness, BrightnessConfig
from samplers import FlowSchedule, GaussianDenoiser, Grid, Prediction, Rng, VPSchedule, grids, shift

N, TABLE = 25, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
EXACT = -1.0324
VP = VPSchedule.from_config(TABLE)


@dataclass
class Shifted:
    """The exact velocity of N(mean, 0.6 I) plus theta."""

    schedule, kind = FlowSchedule(), Prediction.FLOW
    theta: torch.Tensor

    def role(self, name):
        return self

    def __call__(self, x_t, t, cond):
        return GaussianDenoiser(self.schedule, self.kind, std=math.sqrt(0.6))(x_t, t, cond) + self.theta


def toy(kind, *, grid=None, network=None, **config):
    """(objective, network) at 25 steps of a flow with shift 3; pixels are latents, the reward their mean."""
    model = Bundle()
    times = shift(torch.linspace(1, 0, N + 1, dtype=torch.float64), 3.0)
    model.grids = lambda *_: grid or Grid(times)
    block = SamplingConfig(num_steps=N, step_rule="euler", guidance_scale=1.0, memory="stored", window="full")
    rewards = Composite({"brightness": Brightness(BrightnessConfig())})
    network = network or Shifted(torch.zeros((), dtype=torch.float64, requires_grad=True))
    model.schedule, model.kind = network.schedule, network.kind
    return kind(kind.Config(**config), Parts(model, block, rewards, SEED)), network


def derivatives(name: str, count: int, **config) -> torch.Tensor:
    """d (mean of x_0)/d theta at so many draws of the active steps, (count,)."""
    objective, network = toy({"leap": LeapAlign}.get(name, FlowBP), **config)
    found = []
    for update in range(count):
        loss = objective(network, at(update)[:1])
        (gradient,) = torch.autograd.grad(loss.per_sample.sum(), network.theta)
        found.append(-gradient / loss.metrics.get("leap_weight", torch.ones(1)).sum())
    return torch.stack(found)


def test_the_exact_derivative_is_that_of_all_steps():
    objective, network = toy(Draft)
    loss = objective(network, BATCH)
    (found,) = torch.autograd.grad(loss.per_sample.sum(), network.theta)
    assert float(-found) / len(BATCH) == pytest.approx(EXACT, abs=5e-5)


@pytest.mark.parametrize("active", [1, 3, 7])
def test_sparse_is_exactly_minus_one_at_every_draw(active):
    found = derivatives("sparse", 20, active=active)
    torch.testing.assert_close(found, torch.full_like(found, -1.0), rtol=1e-6, atol=0)


def test_sparse_draws_other_steps_each_update_and_no_input_is_passed():
    patterns = set()
    for update in range(20):
        network = Network()
        objective, _ = toy(FlowBP, network=network, grid=grids.flow(8))
        loss = objective(network, at(update))
        kept = steps(network, loss.per_sample)
        assert sum(kept) == 3 and not any(through_input(network, loss.per_sample))
        patterns.add(tuple(kept))
    assert len(patterns) > 4


@pytest.mark.parametrize(
    ("name", "config", "mean", "std"),
    [
        ("bridge", {"form": "bridge", "active": 5, "q": 0.1}, -0.9986, 0.0067),
        ("bridge", {"form": "bridge", "active": 5, "q": 1.0}, -0.987, 0.068),
        ("leap", {"q": 0.3}, -0.827, 0.148),
        ("leap", {"q": 1.0}, -0.792, 0.142),
    ],
)
def test_bridge_and_leaps_at_the_known_values(name, config, mean, std):
    """Over 250 draws; a leap is biased low, because it leaves out what lies before it."""
    found = derivatives(name, 250, **config)
    assert float(found.mean()) == pytest.approx(mean, abs=4 * std / math.sqrt(250))
    assert float(found.std()) == pytest.approx(std, rel=0.2)


@pytest.mark.parametrize("form", ["sparse", "bridge", "lagrange"])
def test_the_value_is_the_samplers_to_the_bit(form):
    for kind, config in ((FlowBP, {"form": form}), (LeapAlign, {})):
        objective, network = toy(kind, **config)
        for update in range(4):
            loss, seen = objective(network, at(update)), objective.model.seen[-1]
            path = objective.path(network, BATCH.prompts, Rng(SEED, BATCH.indices, update))
            assert seen.requires_grad and torch.equal(seen.detach(), path.x[-1])
            assert kind is LeapAlign or form == "lagrange" or loss.metrics["path_gap"].max() < 1e-5
            assert loss.per_sample.requires_grad


@pytest.mark.parametrize(("schedule", "kind"), [(VP, "epsilon"), (VP, "v"), (FlowSchedule(), "flow")])
def test_in_flow_time_every_deterministic_rollout_is_the_sum_of_its_velocities(schedule, kind):
    class Curved:
        def __init__(self):
            self.schedule, self.kind = schedule, Prediction(kind)

        def role(self, name):
            return self

        def __call__(self, x_t, t, cond):
            return torch.tanh(x_t) + t

    grid = grids.ddim(VP, N, offset=1, ends_at_zero=False) if kind != "flow" else grids.flow(N)
    objective, network = toy(LeapAlign, grid=grid, network=Curved())
    path = objective.path(network, BATCH.prompts, Rng(SEED, BATCH.indices))
    y = path.y(0)
    for i in range(N):
        y = y + path.steps[i] * path.v[i]
        torch.testing.assert_close(y, path.y(i + 1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(path.velocity(i), path.v[i], rtol=1e-5, atol=1e-5)


def test_lagrange_weights_integrate_quadratics_and_sum_to_the_interval():
    nodes = torch.tensor([0.9, 0.7, 0.45], dtype=torch.float64)
    start, end = nodes[0], torch.tensor(0.4, dtype=torch.float64)
    weights = lagrange_weights(nodes, start, end)
    for power in range(3):
        exact = (end ** (power + 1) - start ** (power + 1)) / (power + 1)
        torch.testing.assert_close((weights * nodes**power).sum(), exact, rtol=1e-12, atol=0)
    assert float(lagrange_weights(nodes[:1], start, end)) == pytest.approx(-0.5, abs=1e-15)


def test_lagrange_trains_at_most_four_steps_and_enters_the_later_segment():
    for update in range(12):
        network = Network()
        objective, _ = toy(FlowBP, network=network, grid=grids.flow(8), form="lagrange")
        loss = objective(network, at(update))
        kept = steps(network, loss.per_sample)
        k, j = segments(8, 0, Rng(SEED, BATCH.indices, update).shared("active"))
        assert 2 <= sum(kept) <= 4 and kept[k] and kept[j] and not any(kept[:k])
        assert any(through_input(network, loss.per_sample)), "the later segment is entered"


def test_no_velocity_of_a_segment_is_without_weight():
    objective, network = toy(FlowBP)
    path = objective.path(network, BATCH.prompts, Rng(SEED, BATCH.indices))
    for start, end in [(0, 9), (3, 7), (20, 25), (21, 25), (22, 25), (23, 25), (24, 25)]:
        nodes, weights = quadrature(path, start, end)
        assert nodes[0] == start and nodes[-1] < end and len({*nodes}) == len(nodes) <= 3
        assert len(nodes) == 3 or end - start < 4 or end == N
        assert (weights < 0).all() and float(weights.sum()) == pytest.approx(float(path.tau[end] - path.tau[start]))


def test_segments_lie_as_they_should():
    drawn_pairs = [segments(N, 0, torch.Generator().manual_seed(seed)) for seed in range(800)]
    assert all(0 <= k < j < N and j >= N - 10 for k, j in drawn_pairs)
    mean = torch.tensor(drawn_pairs, dtype=torch.float64).mean(0) / N
    assert float(mean[0]) == pytest.approx(2.5 / 10.5, abs=0.02)
    assert float(mean[1]) == pytest.approx(8.5 / 10.5, abs=0.03)


def test_active_steps_are_distinct_and_late_ones_come_more_often():
    counts = Counter(i for seed in range(600) for i in drawn(1, range(4), torch.Generator().manual_seed(seed)))
    shares = torch.tensor([counts[i] for i in range(4)]) / 600
    torch.testing.assert_close(shares, torch.tensor([1.0, 4.0, 9.0, 16.0]) / 30, rtol=0, atol=0.06)
    assert drawn(9, range(4), torch.Generator()) == [0, 1, 2, 3]


def test_straight_through_keeps_one_value_and_the_other_gradient():
    a, b = torch.randn(3, requires_grad=True), torch.randn(3)
    assert torch.equal(straight(a, b), b)
    assert torch.autograd.grad(straight(a, b).sum(), a)[0].tolist() == [1, 1, 1]
    assert torch.equal(scaled(a, 0.25), a) and torch.autograd.grad(scaled(a, 0.25).sum(), a)[0].tolist() == [0.25] * 3


def test_rows_whose_leaps_land_close_weigh_more_but_not_without_bound():
    near, far = torch.zeros(1, *SHAPE), torch.full((1, *SHAPE), 0.9)
    gaps = torch.cat([near, far])
    torch.testing.assert_close(closeness([gaps, gaps], 0.1), torch.tensor([1 / 0.2, 1 / 1.8]))


@pytest.mark.parametrize(
    ("config", "sampling", "key"),
    [
        (LeapAlignConfig(), {"step_rule": "heun"}, "sampling.step_rule"),
        (LeapAlignConfig(), {"eta": 1.0}, "sampling.eta"),
        (LeapAlignConfig(), {"num_steps": 1}, "sampling.num_steps"),
        (FlowBPConfig(), {"noise_law": "cps"}, "sampling.noise_law"),
        (FlowBPConfig(active=6, last_share=0.5), {}, ".active"),
        (FlowBPConfig(form="bridge", active=1), {}, ".active"),
        (FlowBPConfig(form="lagrange"), {"num_steps": 1}, "sampling.num_steps"),
    ],
)
def test_what_does_not_fit_is_refused(config, sampling, key):
    block = SamplingConfig(**{"num_steps": 10, **sampling})
    assert [found for found, _ in config.conflicts({"sampling": block})] == [key]
    assert not list(config.model_copy(update={"active": 2}).conflicts({"sampling": SamplingConfig(num_steps=10)}))
