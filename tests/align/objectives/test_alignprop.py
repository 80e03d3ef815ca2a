"""AlignProp: which steps the gradient comes through, read off the graph; the three laws of the draw by chi-square."""

import math

import pytest
import torch
from bundle_toys import BATCH, SEED, N, Network, at, build, steps, through_input
from scipy.stats import chi2, norm

from align.objectives.alignprop import AlignProp, AlignPropConfig
from align.sampling import SamplingConfig
from samplers import Rng

LAWS = [("contiguous", {}), ("bernoulli", {}), ("normal", {"normal_mean": 4.0, "normal_std": 2.0})]
DRAWS = 10_000


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("law", "settings"), LAWS)
def test_the_gradient_comes_through_the_drawn_steps_and_only_them(law, settings, eta):
    seen = set()
    for update in range(8):
        network = Network()
        objective = build(AlignProp, {"law": law}, eta=eta, **settings)
        loss = objective(network, at(update))
        kept = steps(network, loss.per_sample)
        first = kept.index(True)
        assert int(loss.metrics["kept_steps"]) == sum(kept)
        # an output that is left out is a constant, and cuts nothing else: x_t goes on past it
        assert through_input(network, loss.per_sample) == [flag and i > first for i, flag in enumerate(kept)]
        if law != "bernoulli":
            assert kept == [i >= first for i in range(N)]
        seen.add(tuple(kept))
    assert len(seen) > 2, "each update draws anew"


def draws(num_steps: int, law: str, **settings) -> torch.Tensor:
    """What the objective keeps in 10^4 updates: (10^4, num_steps) bools."""
    policy = build(AlignProp, {"law": law}, num_steps=num_steps, **settings).sampling.grad_policy()
    return torch.tensor([policy.decide(num_steps, Rng(SEED, (0,), u).shared("grad")) for u in range(DRAWS)])


def p_value(counts: torch.Tensor, chances: torch.Tensor) -> float:
    expected = chances * DRAWS
    assert float(expected.min()) > 5, "chi-square needs five in each cell"
    return float(chi2.sf(float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1))


def test_contiguous_is_uniform_in_the_number_of_last_steps():
    lengths = draws(10, "contiguous", min_k=3, max_k=8).sum(1)
    counts = lengths.bincount(minlength=11)
    assert counts[:3].sum() == counts[9:].sum() == 0
    assert p_value(counts[3:9].double(), torch.full((6,), 1 / 6)) > 1e-3
    assert draws(10, "contiguous").sum(1).unique().tolist() == list(range(1, 11)), "by default all lengths"


def test_bernoulli_keeps_step_i_with_chance_i_plus_1_over_n_plus_1():
    kept = draws(10, "bernoulli").double()
    chances = torch.arange(1, 11).double() / 11
    variance = DRAWS * chances * (1 - chances)
    statistic = float(((kept.sum(0) - DRAWS * chances) ** 2 / variance).sum())
    assert chi2.sf(statistic, 10) > 1e-3
    together = (kept[:, 4] * kept[:, 5]).mean() - kept[:, 4].mean() * kept[:, 5].mean()
    assert abs(float(together)) < 4 * 0.25 / math.sqrt(DRAWS), "each step by itself"


def test_normal_starts_at_a_rounded_down_normal_within_the_steps():
    first = (~draws(50, "normal")).sum(1)
    edges = torch.tensor(norm.cdf(range(1, 51), 42, 5))
    chances = edges.diff() / (edges[-1] - edges[0])  # P(first = k), k = 1..49
    low = 26  # rarer ones are put together
    counts = first.bincount(minlength=50)[1:].double()
    counts = torch.cat([counts[:low].sum(0, keepdim=True), counts[low:]])
    chances = torch.cat([chances[:low].sum(0, keepdim=True), chances[low:]])
    assert p_value(counts, chances) > 1e-3


def test_settings_of_a_law_that_cannot_work_are_refused_at_the_sampling_blocks_key():
    ((key, text),) = AlignPropConfig(law="normal").conflicts({"sampling": SamplingConfig(num_steps=20)})
    assert key == "sampling.normal_mean" and "none of the 20 steps" in text
    ((key, _),) = AlignPropConfig().conflicts({"sampling": SamplingConfig(num_steps=8, max_k=9)})
    assert key == "sampling.max_k"
    assert not list(AlignPropConfig().conflicts({"sampling": SamplingConfig(num_steps=8)}))


def test_the_target_form():
    reward = build(AlignProp)(Network(), BATCH).metrics["reward/total"]
    loss = build(AlignProp, {"target": 0.5})(Network(), BATCH).per_sample
    torch.testing.assert_close(loss.detach(), (reward - 0.5).abs())
