"""sampling.guidance in a recipe: its settings refused where they cannot work, its calls counted, its pictures drawn."""

import pytest
import torch
from pydantic import ValidationError

from align.config import load_recipe
from align.errors import UserError
from align.models.sd import SDConfig, StableDiffusion
from align.sampling import SamplingConfig, rollout
from align.sampling.guidance import GuidanceConfig
from align.sampling.levers import prefixed
from samplers import FlowSchedule, GaussianDenoiser, Prediction, Rng, constant, grids

PROMPTS = ["a red circle", "two stars"]


@pytest.fixture(scope="module")
def model(tiny_sd_factory):
    return StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory())


class Counting:
    """The network's denoiser, with the rows of its calls."""

    def __init__(self, model):
        self.inner, self.rows = model.denoiser(), []
        self.schedule, self.kind = self.inner.schedule, self.inner.kind

    def __call__(self, x_t, t, cond):
        self.rows.append(len(x_t))
        return self.inner(x_t, t, cond)


def block(guidance, **settings):
    return SamplingConfig(**{"num_steps": 6, "guidance": guidance, **settings})


def draw(model, config):
    network = Counting(model)
    return rollout(config, model, network, PROMPTS, Rng(0, [0, 1])).x0, network.rows


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        ({"scale": [3.0, 2.0]}, r"guidance.scale\n  has 2 entries for 6 network calls"),
        ({"scale": {0.5: 2.0}}, r"says nothing of t = 1"),
        ({"scale": -1.0}, r"guidance.scale"),
        ({"gamma": 0.9}, r"guidance.gamma\n  is 0.9, and skip is none. Set skip: adaptive"),
        ({"every": 3, "skip": "adaptive"}, r"guidance.every\n  is 3, and skip is adaptive. Set skip: refresh"),
        ({"reuse": "delta", "skip": "adaptive"}, r"guidance.reuse\n  .*Set skip to fraction or refresh"),
        ({"plus_plus": True}, r"guidance.scale\n  is 7.5, and CFG\+\+'s lambda"),
        ({"interval": (0.8, 0.2)}, r"guidance.interval\n  is \[0.8, 0.2\]"),
        ({"interval": (0.2, 1.5)}, r"guidance.interval\n  is \[0.2, 1.5\]"),
        ({"zero_init": 7}, r"guidance.zero_init\n  7 exceeds"),
        ({"skips": "adaptive"}, r"guidance.skips\n  unknown key"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_their_own_key(guidance, message):
    with pytest.raises(ValidationError, match=message):
        block(guidance)


def test_one_place_says_the_guidance():
    with pytest.raises(ValidationError, match=r"guidance_scale\n  is set beside the block guidance"):
        block({"scale": 3.0}, guidance_scale=2.0)
    with pytest.raises(ValidationError, match=r"guidance.plus_plus\n  is for deterministic steps of first order"):
        block({"scale": 0.6, "plus_plus": True}, step_rule="dpmpp_2m")


def test_the_short_form_is_the_block_with_a_scale(model):
    short, _ = draw(model, SamplingConfig(num_steps=6, guidance_scale=3.0, guidance_interval=(0.2, 0.8)))
    long, _ = draw(model, block({"scale": 3.0, "interval": [0.2, 0.8]}))
    assert torch.equal(short, long)


@pytest.mark.parametrize(
    "guidance",
    [
        {"scale": 1.0},
        {"scale": 3.0},
        {"scale": [1.0, 5.0, 4.0, 3.0, 2.0, 1.0]},
        {"scale": {1.0: 5.0, 0.4: 2.0}},
        {"scale": 3.0, "skip": "fraction", "fraction": 0.3},
        {"scale": 3.0, "skip": "refresh", "every": 4, "reuse": "delta2"},
        {"scale": 3.0, "skip": "adaptive", "gamma": 1.1},
        {"scale": 0.6, "plus_plus": True},
        {"scale": 3.0, "rescale": 0.7, "zero_star": True},
    ],
)
def test_the_rows_that_are_foretold_are_those_of_the_network(model, guidance):
    config = block(guidance)
    x0, rows = draw(model, config)
    assert x0.isfinite().all() and sum(rows) == len(PROMPTS) * config.num_rows
    assert torch.equal(draw(model, config)[0], x0)


def test_what_other_programs_can_be_told_of_it():
    assert GuidanceConfig(scale=3.0).plain == 3.0 and GuidanceConfig(scale=3).plain == 3
    for more in ({"interval": (0.0, 0.5)}, {"skip": "adaptive"}, {"rescale": 0.5}, {"scale": {1.0: 3.0}}):
        assert GuidanceConfig(**more).plain is None
    assert GuidanceConfig(scale=7.5).described() == "guidance 7.5"
    assert GuidanceConfig(scale=3.0, skip="refresh", every=3).described() == "guidance 3, skip refresh, every 3"


def test_an_epsilon_network_cannot_stand_still(model):
    with pytest.raises(UserError, match="only a flow's velocity can stand still"):
        draw(model, block({"scale": 3.0, "zero_init": 1}))


@pytest.mark.parametrize("recipe", ["spo/shapes", "grpo/shapes", "ddpo/shapes"])
def test_methods_that_train_single_steps_refuse_what_needs_a_trajectory(recipe):
    changes = {"sampling.guidance": {"scale": 2.0, "skip": "adaptive"}, "sampling.guidance_scale": 7.5}
    with pytest.raises(UserError, match=r"sampling.guidance.*knows its calls by their place"):
        load_recipe(recipe, changes)


def test_draft_trains_through_a_gate_and_its_last_step_is_one_row(model):
    config = block({"scale": 3.0, "skip": "fraction", "fraction": 0.5}, last_k=1)
    weight = model.network.conv_in.weight.requires_grad_()
    network = Counting(model)
    x0 = rollout(config, model, network, PROMPTS, Rng(0, [0, 1]), grad=config.grad_policy()).x0
    network.rows.clear()
    x0.sum().backward()
    weight.requires_grad_(False)
    assert network.rows == [len(PROMPTS)] and weight.grad.norm() > 0
    weight.grad = None


def test_a_block_that_leaves_scale_and_interval_open_takes_the_short_ones():
    block = SamplingConfig.model_validate({"guidance_scale": 3.0, "guidance": {"rescale": 0.7}})
    assert block.how.scale == 3.0 and block.how.rescale == 0.7
    assert SamplingConfig.model_validate(block.model_dump()) == block
    with pytest.raises(ValidationError, match="set beside the block"):
        SamplingConfig.model_validate({"guidance_scale": 3.0, "guidance": {"scale": 2.0}})


def test_dynamic_guidance_judges_what_a_step_predicts(tiny_sd_factory):
    model = StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory())

    def drawn(guidance):
        block = SamplingConfig(num_steps=2, guidance=guidance)
        x0 = rollout(block, model, model.denoiser(), ["a star"], Rng(0, [0])).x0
        return model.codec.decode(x0).detach()

    bright = {"brightness": {}}
    one, two = (drawn({"scale": w}) for w in (1.0, 9.0))
    assert torch.equal(drawn({"dynamic": {"scales": [9.0], "rewards": bright}}), two)
    best = drawn({"dynamic": {"scales": [1.0, 9.0], "rewards": bright}})
    assert best.mean() >= max(one.mean(), two.mean()) - 1e-3
    with pytest.raises(ValidationError, match="dynamic chooses the scales"):
        SamplingConfig(guidance={"scale": 3.0, "dynamic": {"rewards": bright}})
    with pytest.raises(ValidationError, match="goes by one scale"):
        SamplingConfig(guidance={"skip": "adaptive", "dynamic": {"rewards": bright}})


def test_guidance_of_a_shorter_prefix_counts_the_calls_that_are_made(monkeypatch):
    """Half of the calls in full is half of the three that levers leave, not of the nine."""
    seen = []
    monkeypatch.setattr(SamplingConfig, "guided", lambda self, denoiser, _: seen.append(self.num_calls) or denoiser)
    block = SamplingConfig(num_steps=9, last_k=1, guidance_scale=3.0, levers={"steps": 3, "guidance": "refresh"})
    x = torch.ones(1, 2, 2, 2, dtype=torch.float64)
    exact = GaussianDenoiser(FlowSchedule(), Prediction.FLOW, 0.7)
    prefixed(block, exact, None, x, grids.flow(9), constant(torch.zeros_like(x)))
    assert seen == [3]


def test_levers_act_on_the_prefix_alone_and_a_full_one_changes_nothing(tiny_sd_factory):
    model = StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory())
    rows = []

    class Counted:
        schedule, kind, rescale = model.schedule, model.kind, None

        def __call__(self, x_t, t, cond):
            rows.append(len(x_t))
            return model.denoiser()(x_t, t, cond)

    def drawn(levers=None, *, trained=True):
        rows.clear()
        block = SamplingConfig(num_steps=5, last_k=1, guidance_scale=3.0, levers=levers)
        grad = block.grad_policy() if trained else None
        return rollout(block, model, Counted(), ["a star"], Rng(0, [0]), grad=grad).x0.detach()

    plain = drawn()
    assert torch.equal(drawn({"steps": 4}), plain) and rows == [2] * 5
    assert not torch.allclose(drawn({"steps": 2}), plain) and rows == [2] * 3
    assert not torch.allclose(drawn({"guidance": "none"}), plain) and rows == [1] * 4 + [2]
    assert not torch.allclose(drawn({"guidance": "refresh"}), plain) and rows == [2, 1, 2, 1, 2]
    half = drawn({"precision": "bf16"})
    assert not torch.equal(half, plain) and (half - plain).abs().mean() < 0.1 * plain.abs().mean()
    assert torch.equal(drawn({"guidance": "none"}, trained=False), drawn(trained=False))  # pictures are in full
    with pytest.raises(ValidationError, match="window=last"):
        SamplingConfig(window="full", levers={"guidance": "none"})
    with pytest.raises(ValidationError, match="the prefix has 4"):
        SamplingConfig(num_steps=5, levers={"steps": 5})
