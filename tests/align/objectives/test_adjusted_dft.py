"""Adjusted DFT: with outputs that are parameters themselves, each step's contribution is exactly 1 for every solver."""

import pytest
import torch
from bundle_toys import BATCH, SEED, SHAPE, Bundle, Network, at, build, steps, through_input

from align.models._grids import VPGrids
from align.objectives._adjusted import adjusted
from align.objectives._base import Parts
from align.objectives.adjusted_dft import AdjustedDFT, AdjustedDFTConfig
from align.objectives.drtune import DRTune
from align.sampling import SamplingConfig
from rewards import Composite
from rewards.brightness import Brightness, BrightnessConfig
from samplers import FlowSchedule, Prediction, VPSchedule, grids, lcm, sensitivity

TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
TABLE |= {"set_alpha_to_one": False}  # as Stable Diffusion's
RULES = ["ddim", "euler", "dpmpp_2m", "heun", "euler_ancestral"]


class Outputs:
    """A network whose i-th call says theta_i at every place, whatever it is given."""

    def __init__(self, model, num_calls):
        self.schedule, self.kind = model.schedule, model.kind
        self.theta = torch.linspace(-1, 1, num_calls, dtype=torch.float64, requires_grad=True)
        self.calls = 0

    def role(self, name):
        return self

    def __call__(self, x_t, t, cond):
        self.calls += 1
        return self.theta[self.calls - 1] + torch.zeros_like(x_t)


def on(schedule, kind, rule, num_steps=7, **config):
    """(objective, network) on a schedule; pixels are latents, and the reward is their mean."""
    model = Bundle()
    vp = VPGrids(schedule, TABLE) if isinstance(schedule, VPSchedule) else None
    flow = lambda n, shape, step, spacing: grids.doubled(grids.flow(n)) if step == "heun" else grids.flow(n)  # noqa: E731
    model.schedule, model.kind, model.grids = schedule, kind, vp or flow
    block = SamplingConfig(num_steps=num_steps, step_rule=rule, guidance_scale=1.0, memory="stored")
    rewards = Composite({"brightness": Brightness(BrightnessConfig())})
    made = AdjustedDFT(AdjustedDFTConfig(**config), Parts(model, block, rewards, SEED))
    return made, Outputs(model, block.num_calls)


def contributions(objective, network):
    """d (a row's mean x_0)/d theta_i, (num_calls,)."""
    loss = objective(network, BATCH)
    (found,) = torch.autograd.grad(loss.per_sample.sum(), network.theta)
    return -found / len(BATCH)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("schedule", "kind"),
    [
        (FlowSchedule(), Prediction.FLOW),
        (VPSchedule.from_config(TABLE), Prediction.EPSILON),
        (VPSchedule.from_config(TABLE), Prediction.V),
    ],
    ids=["flow", "epsilon", "v"],
)
def test_every_step_contributes_exactly_one_with_the_sign_of_the_exact_gradient(rule, schedule, kind):
    objective, network = on(schedule, kind, rule)
    found = contributions(objective, network)
    grid = objective.sampling.grid(objective.model)
    exact = sensitivity(schedule, kind, grid, step=objective.sampling.step())
    torch.testing.assert_close(found, exact.sign(), rtol=1e-6, atol=0)


def test_the_plain_gradient_of_the_same_trajectory_is_far_from_equal():
    """What the factor takes out: on SD's table the first step's share is a hundred times the last one's."""
    objective, _ = on(VPSchedule.from_config(TABLE), Prediction.EPSILON, "ddim", num_steps=50)
    scale = torch.tensor(adjusted(objective.sampling, objective.model).scale)
    assert float(scale[-1] / scale[0]) > 100


def test_all_steps_and_no_input():
    network = Network()
    loss = build(AdjustedDFT)(network, BATCH)
    assert steps(network, loss.per_sample) == [True] * 8
    assert not any(through_input(network, loss.per_sample))


def test_it_is_drtune_with_all_steps_times_the_factor():
    """On a flow of N equal steps A_i is -1/N, so that the gradient is N times DRTune's."""
    network, theirs = Network(), Network()
    loss = build(AdjustedDFT)(network, BATCH)
    plain = build(DRTune, {"early_stop": 0.0}, subset_k=8)(theirs, BATCH)
    torch.testing.assert_close(loss.per_sample, plain.per_sample, rtol=1e-12, atol=0)
    (found,) = torch.autograd.grad(loss.per_sample.sum(), network.theta)
    (expected,) = torch.autograd.grad(plain.per_sample.sum(), theirs.theta)
    torch.testing.assert_close(found, 8 * expected, rtol=1e-9, atol=0)


def test_the_number_of_steps_is_drawn_alike_for_all_rows_of_an_update():
    seen = set()
    for update in range(20):
        counts = set()
        for cut in (at(update), at(update)[:1]):
            objective, network = on(FlowSchedule(), Prediction.FLOW, "ddim", vary_steps=2)
            network.theta = torch.zeros(9, dtype=torch.float64, requires_grad=True)
            objective(network, cut)
            counts.add(network.calls)
        (count,) = counts
        seen.add(count)
    assert seen == {5, 6, 7, 8, 9}


def test_what_does_not_fit_is_refused():
    few = SamplingConfig(num_steps=2)
    ((key, text),) = AdjustedDFTConfig(vary_steps=2).conflicts({"sampling": few})
    assert key == ".vary_steps" and "leaves no step" in text
    fixed = SamplingConfig(num_steps=2, timesteps=(800, 300))
    ((key, text),) = AdjustedDFTConfig(vary_steps=1).conflicts({"sampling": fixed})
    assert key == ".vary_steps" and "timesteps" in text
    assert not list(AdjustedDFTConfig().conflicts({"sampling": fixed}))
    listed = SamplingConfig(num_steps=3, guidance={"scale": [2, 3, 2]})
    ((key, text),) = AdjustedDFTConfig(vary_steps=1).conflicts({"sampling": listed})
    assert key == ".vary_steps" and "sampling.guidance.scale lists" in text
    by_time = SamplingConfig(num_steps=3, guidance={"scale": {1.0: 2, 0.5: 3}})
    assert not list(AdjustedDFTConfig(vary_steps=1).conflicts({"sampling": by_time}))
    learned = SamplingConfig(num_steps=3, solver="solver.json")
    ((key, text),) = AdjustedDFTConfig(vary_steps=1).conflicts({"sampling": learned})
    assert key == ".vary_steps" and "sampling.solver was learned" in text


def test_a_step_without_a_path_has_no_gradient_and_no_infinite_factor():
    """An LCM keeps x0_hat alone: of a network that predicts x0 the last output is all that reaches the end."""
    model = Bundle()
    model.schedule, model.kind = VPSchedule.from_config(TABLE), Prediction.SAMPLE
    model.grids = VPGrids(model.schedule, TABLE)
    scale = adjusted(SamplingConfig(num_steps=3, step_rule="lcm"), model).scale
    assert scale == [1.0, 1.0, 1.0]
    reached = sensitivity(model.schedule, model.kind, model.grids(3, SHAPE, "lcm", None), step=lcm)
    assert reached.tolist() == [0.0, 0.0, 1.0]
