import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from align.config import load_recipe
from align.errors import UserError
from align.models.sd import SDConfig, StableDiffusion
from align.sampling import SamplingConfig, rollout
from samplers import DPMpp2M, FlowSchedule, Heun, Rng, cfg, ddim, grids, sample

PROMPTS = ["a red circle", "two stars"]


@pytest.fixture(scope="module")
def model(tiny_sd_factory):
    return StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 8, "last_k": 10}, r"last_k\n  10 exceeds num_steps=8: gradients cannot flow .* Set last_k <= 8"),
        ({"num_steps": 8, "window": "contiguous", "max_k": 9}, r"max_k\n  9 exceeds num_steps=8"),
        ({"num_steps": 8, "window": "contiguous", "min_k": 6, "max_k": 5}, r"min_k\n  6 exceeds max_k=5"),
        ({"num_steps": 8, "window": "contiguous", "min_k": 9}, r"min_k\n  9 exceeds max_k=8"),
        ({"num_steps": 8, "window": "subset", "subset_k": 9}, r"subset_k\n  9 exceeds"),
        ({"num_steps": 20, "window": "normal"}, r"normal_mean\n  42.0 is none of the 20 steps"),
        ({"step_rule": "dpmpp_2m", "eta": 0.5}, r"eta\n  is 0.5, and dpmpp_2m has no eta"),
        ({"order": 3}, r"order\n  is 3, and ddim takes none. Use heavy_ball or ghvb"),
        ({"step_rule": "ghvb", "beta": 0.0}, r"beta"),
        (
            {"memory": "reversible"},
            r"memory\n  is reversible, and ddim cannot be run backwards",
        ),
        ({"spacing": "karras"}, r"spacing\n  is karras.* Use euler, heun or dpmpp_2m"),
        ({"step_rule": "lcm", "num_steps": 4, "spacing": "trailing"}, r"spacing\n  .* its own times"),
        ({"num_steps": 2, "timesteps": [800]}, r"timesteps\n  are 1, and num_steps is 2"),
        ({"num_steps": 2, "timesteps": [400, 800]}, r"timesteps\n  .* less than the one before"),
        ({"num_steps": 1, "timesteps": [800], "step_rule": "euler"}, r"timesteps\n  .* Use ddim"),
        ({"num_steps": 1, "timesteps": [800], "spacing": "leading"}, r"timesteps\n  .*spacing=leading"),
        ({"guidance_interval": (0.7, 0.2)}, r"guidance_interval\n  .* low <= high"),
        ({"eta": 1.5}, r"eta\n  is 1.5"),
        ({"eta": 1.5, "noise_law": "cps"}, r"eta\n  is 1.5"),
        ({"step_rule": "heun", "noise_law": "cps"}, r"noise_law\n  is cps, and heun takes none"),
        ({"num_step": 8}, r"num_step\n  unknown key"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_their_own_key(settings, message):
    with pytest.raises(ValidationError, match=message):
        SamplingConfig(**settings)


def test_every_problem_is_said_at_once():
    with pytest.raises(ValidationError) as caught:
        SamplingConfig(num_steps=4, last_k=5, step_rule="lcm", spacing="leading", eta=1.0)
    assert {error["loc"] for error in caught.value.errors()} == {("last_k",), ("spacing",), ("eta",)}


def test_heun_counts_its_calls():
    assert SamplingConfig(step_rule="heun", num_steps=5, last_k=9).num_calls == 9
    with pytest.raises(ValidationError, match="10 exceeds network calls=9"):
        SamplingConfig(step_rule="heun", num_steps=5, last_k=10)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"last_k": 2}, [False, False, False, True, True]),
        ({"window": "full"}, [True] * 5),
        ({"window": "contiguous", "min_k": 2, "max_k": 2}, [False, False, False, True, True]),
        ({"window": "subset", "subset_k": 5}, [True] * 5),
        ({"window": "normal", "normal_mean": 3.5, "normal_std": 0.0}, [False, False, False, True, True]),
    ],
)
def test_windows(settings, expected):
    config = SamplingConfig(num_steps=5, **settings)
    assert config.grad_policy().decide(5, Rng(0, [0]).shared("grad")) == expected


def test_bernoulli_and_the_other_choices_reach_the_policy():
    config = SamplingConfig(num_steps=50, window="bernoulli", detach_input=True, memory="stored")
    policy = config.grad_policy()
    assert policy.detach_input and not policy.checkpoint
    assert 15 < sum(policy.decide(50, Rng(0, [0]).shared("grad"))) < 40


RULES = ["ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m", "lcm", "heavy_ball", "ghvb", "leapfrog"]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_runs_on_a_model(model, rule):
    config = SamplingConfig(num_steps=4, step_rule=rule, guidance_scale=2.0)
    trajectory = rollout(config, model, model.denoiser(), PROMPTS, Rng(0, [0, 1]))
    assert trajectory.x0.shape == (2, 4, 8, 8) and trajectory.x0.isfinite().all()
    assert len(trajectory.kept) == config.num_calls and not trajectory.x0.requires_grad


def test_a_rollout_is_the_samplers_own(model):
    config = SamplingConfig(num_steps=4, step_rule="euler", spacing="trailing", guidance_scale=3.0)
    rng = Rng(5, [3, 9])
    grid = model.grids(4, (4, 8, 8), "euler", "trailing")
    assert grid.init_scale < 1
    x_T = rng.normal("x_T", torch.empty(2, 4, 8, 8)) * grid.init_scale
    denoiser = cfg(model.denoiser(), model.text.encode([""]), 3.0)
    expected = sample(denoiser, x_T, grid, model.text.encode(PROMPTS), step=ddim).x0
    assert torch.equal(rollout(config, model, model.denoiser(), PROMPTS, rng).x0, expected)


def test_eta_and_guidance_interval_act(model):
    def x0(**settings):
        config = SamplingConfig(num_steps=4, guidance_scale=5.0, **settings)
        return rollout(config, model, model.denoiser(), PROMPTS, Rng(0, [0, 1])).x0

    plain = x0()
    assert torch.equal(plain, x0(eta=0.0)) and not torch.allclose(plain, x0(eta=1.0))
    assert not torch.allclose(plain, x0(guidance_interval=(0.0, 0.5)))
    assert torch.equal(x0(step_rule="euler_ancestral", eta=0.0), x0(step_rule="euler"))
    assert not torch.allclose(x0(step_rule="euler_ancestral"), x0(step_rule="euler"))


def test_given_noise_replaces_the_drawn_one(model):
    config, x_T = SamplingConfig(num_steps=2), torch.randn(2, 4, 8, 8)
    runs = [rollout(config, model, model.denoiser(), PROMPTS, Rng(seed, [0, 1]), x_T=x_T).x0 for seed in (0, 1)]
    assert torch.equal(*runs)


def test_gradients_flow_as_the_window_says(model):
    weight = model.network.conv_in.weight.requires_grad_()
    config = SamplingConfig(num_steps=3, last_k=2, guidance_scale=2.0)
    trajectory = rollout(
        config, model, model.denoiser(), PROMPTS, Rng(0, [0, 1]), grad=config.grad_policy(), keep="states"
    )
    weight.requires_grad_(False)
    assert trajectory.kept == (False, True, True) and trajectory.x0.requires_grad
    assert [state.requires_grad for state in trajectory.states] == [False, False, True, True]


def test_another_image_size_is_the_latents(model):
    config = SamplingConfig(num_steps=2, image_size=(64, 32))
    x0 = rollout(config, model, model.denoiser(), PROMPTS, Rng(0, [0, 1])).x0
    assert x0.shape == (2, 4, 16, 8) and model.codec.decode(x0).shape == (2, 3, 64, 32)


def test_rules_are_the_samplers():
    assert SamplingConfig(step_rule="heun").step() is Heun and SamplingConfig(step_rule="dpmpp_2m").step() is DPMpp2M


def test_checking_a_sampling_block_needs_no_torch():
    code = (
        "import sys; from align.sampling import SamplingConfig; SamplingConfig(num_steps=8);"
        "print(sorted({'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"num_steps": 2000}, "num_steps=2000 must be between 1 and the schedule's 1000 levels"),
        ({"num_steps": 60, "step_rule": "lcm"}, "num_steps=60 exceeds the 50 steps"),
    ],
)
def test_more_steps_than_there_are_times_are_refused_by_name(model, said, why):
    with pytest.raises(UserError, match=f"^sampling: {why}.*Change num_steps"):
        SamplingConfig(**said).grid(model)


def test_timesteps_by_hand_are_entries_of_the_table(model):
    own = SamplingConfig(num_steps=4, spacing="trailing").grid(model)
    said = SamplingConfig(num_steps=4, timesteps=(999, 749, 499, 249)).grid(model)
    assert torch.equal(said.times, own.times) and said.init_scale == own.init_scale
    with pytest.raises(UserError, match=r"timesteps=\[1000\]: the model's table ends at 999"):
        SamplingConfig(num_steps=1, timesteps=(1000,)).grid(model)


def test_a_flow_model_has_no_table():
    model = SimpleNamespace(schedule=FlowSchedule(), grids=lambda *_: grids.flow(1), latent_shape=lambda *_: (4, 8, 8))
    with pytest.raises(UserError, match="no table of times"):
        SamplingConfig(num_steps=1, timesteps=(800,)).grid(model)  # type: ignore[arg-type]


def test_a_noise_law_replaces_the_rules_own(model):
    """ddim's law is ddim with that eta; cps at 0 has no noise; each law has the level that it was published with."""
    from samplers import FlowSchedule

    rng = Rng(3, range(2))

    def x0(**settings):
        config = SamplingConfig(num_steps=3, guidance_scale=1, **settings)
        return rollout(config, model, model.denoiser(), ["a", "b"], rng).x0

    assert torch.equal(x0(noise_law="ddim", eta=0.6), x0(eta=0.6))
    assert torch.equal(x0(noise_law="ddim"), x0(eta=1.0))
    torch.testing.assert_close(x0(noise_law="cps", eta=0), x0(), rtol=0, atol=1e-5)
    assert torch.equal(x0(step_rule="euler", noise_law="ddim"), x0(step_rule="euler_ancestral"))
    assert not torch.allclose(x0(noise_law="flow_sde", eta=0.2), x0(noise_law="dance_sde", eta=0.2), atol=1e-3)
    flow, times = FlowSchedule(), torch.tensor([0.7, 0.55], dtype=torch.float64)
    levels = (*flow(times[0]), *flow(times[1]))
    for law, level in (("ddim", 1.0), ("cps", 0.8), ("flow_sde", 0.7), ("dance_sde", 0.3)):
        named, said = SamplingConfig(noise_law=law), SamplingConfig(noise_law=law, eta=level)
        assert named.law()(*levels) == said.law()(*levels) and named.stochastic
    assert not SamplingConfig().stochastic and not SamplingConfig(noise_law="cps", eta=0).stochastic
    assert SamplingConfig(step_rule="euler_ancestral").stochastic and not SamplingConfig(step_rule="lcm").stochastic


def test_memory_by_its_old_name():
    """Runs from before have checkpoint_steps in their recipes."""
    assert SamplingConfig(checkpoint_steps=False).memory == "stored"
    assert SamplingConfig(checkpoint_steps=True).memory == "checkpointed"
    with pytest.raises(ValidationError, match="checkpoint_steps"):
        SamplingConfig(checkpoint_steps=True, memory="stored")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.name": "refl"}, "refl does not differentiate a chain whole"),
        ({"adapter.dropout": 0.1}, "Set that to 0"),
        ({"objective.kl": 0.1}, "keeps no states to compare"),
    ],
)
def test_what_is_not_reversible_is_refused(changes, message):
    said = {"sampling.step_rule": "leapfrog", "sampling.memory": "reversible", "sampling.num_steps": 6}
    load_recipe("draft/shapes", said)
    with pytest.raises(UserError, match=message):
        load_recipe("draft/shapes", said | changes)


def test_a_rollout_of_so_many_calls_makes_them(model):
    block = SamplingConfig(num_steps=4, guidance_scale=1.0)
    ended = rollout(block, model, model.denoiser(), PROMPTS, Rng(0, [0, 1]), num_calls=3, keep="states")
    whole = rollout(block, model, model.denoiser(), PROMPTS, Rng(0, [0, 1]), keep="states")
    assert len(ended.states) == 3 + 1 and torch.equal(ended.states[-1], whole.states[3])
