"""DRTune: k equally spaced steps carry the gradient, none of it through an input; the sum of its terms by hand."""

from itertools import pairwise

import pytest
import torch
from bundle_toys import BATCH, N, Network, at, build, steps, through_input

from align.objectives.draft import Draft
from align.objectives.drtune import DRTune, DRTuneConfig
from align.sampling import SamplingConfig
from samplers import FlowSchedule, Grid, cfg, grids, sample


def ended_early(objective):
    """(network, batch, loss) of an update that stops before the last step, where prediction and sample differ."""
    for update in range(24):
        network, batch = Network(), at(update)
        loss = objective(network, batch)
        if loss.metrics["step_read"] < N - 1:
            return network, batch, loss
    raise AssertionError("no update stopped early")


@pytest.mark.parametrize("k", [1, 3])
def test_k_equally_spaced_steps_up_to_a_random_late_one(k):
    read, patterns = set(), set()
    for update in range(24):
        network = Network()
        loss = build(DRTune, subset_k=k)(network, at(update))
        m = int(loss.metrics["step_read"])
        kept = [i for i, flag in enumerate(steps(network, loss.per_sample)) if flag]
        assert len(kept) == k and kept[-1] <= m and max(network.inputs) == m
        assert {b - a for a, b in pairwise(kept)} <= {(m + 1) // k}
        assert not any(through_input(network, loss.per_sample))
        read.add(m)
        patterns.add(tuple(kept))
    assert read == {5, 6, 7}, "the last 40 % of 8 steps"
    assert len(patterns) >= 4


def test_the_gradient_is_the_plain_sum_of_its_steps_terms():
    """d x0_hat/d out_i along the recursion alone; for a flow x0_hat = x_m - sigma_m out and x_s = x_t + (s - t) out."""
    network, _, loss = ended_early(build(DRTune, subset_k=3, guidance_scale=1.0))
    (found,) = torch.autograd.grad(loss.per_sample.sum(), network.theta, retain_graph=True)
    m, times = int(loss.metrics["step_read"]), grids.flow(N).times
    weight = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1) / 4
    expected = torch.zeros(N, dtype=torch.float64)
    for i in (i for i in range(N) if found[i] != 0):
        step = -times[m] if i == m else times[i + 1] - times[i]
        expected[i] = -(weight * step * network.inputs[i].detach().square() / 4).sum()
    assert int((found != 0).sum()) == 3
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_without_early_stop_and_with_every_step_it_reads_the_sample_itself():
    network, theirs = Network(), Network()
    mine = build(DRTune, {"early_stop": 0.0}, subset_k=N)
    loss = mine(network, BATCH)
    full = build(Draft, window="full")(theirs, BATCH)
    torch.testing.assert_close(loss.per_sample, full.per_sample, rtol=1e-12, atol=0)
    assert steps(network, loss.per_sample) == [True] * N
    gap = torch.autograd.grad(loss.per_sample.sum(), network.theta)[0]
    gap = gap - torch.autograd.grad(full.per_sample.sum(), theirs.theta)[0]
    assert float(gap[:-1].abs().min()) > 0 and gap[-1] == 0, "DRaFT's gradient also passes through the inputs"


def test_the_reward_is_read_on_the_prediction_of_the_step_it_stops_at():
    objective = build(DRTune, guidance_scale=1.0)
    network, batch, loss = ended_early(objective)
    m = int(loss.metrics["step_read"])
    x_T = network.inputs[0].detach()
    cond = objective.model.text.encode(batch.prompts)
    short = Grid(grids.flow(N).times[: m + 2], 1.0)
    expected = sample(cfg(Network(), cond, 1.0), x_T, short, cond).x0_hat
    torch.testing.assert_close(objective.model.seen[-1].detach(), expected.detach(), rtol=1e-12, atol=0)
    assert FlowSchedule()(short.times[-1:])[1] >= 0


def test_more_steps_than_may_be_left_are_refused():
    ((key, text),) = DRTuneConfig().conflicts({"sampling": SamplingConfig(num_steps=8, subset_k=7)})
    assert key == "sampling.subset_k" and "exceeds 6" in text
    assert not list(DRTuneConfig().conflicts({"sampling": SamplingConfig(num_steps=8, subset_k=6)}))
