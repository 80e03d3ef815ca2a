"""What an objective cannot be trained with is refused by the key that is to change; what is just possible is not."""

from typing import Any

import pytest

from align import recipes
from align.config import load_recipe
from align.errors import UserError
from align.registry import OBJECTIVES

PROMPTS = {"name": "prompts", "prompts": ["a red circle", "two blue squares"]}
ONLINE = {"name": "online_pairs", "prompts": "shapes:train", "num_images": 2}
LABELS = {"name": "labels", "labels": "runs/labels"}
NORMALISED = {"normalise": "running"}
LCM: dict[str, Any] = {"sampling.step_rule": "lcm", "sampling.spacing": None}
ONE: dict[str, Any] = {"sampling.num_steps": 1}
GUIDED = {"scale": 2.0}

WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("adjoint_matching", {"sampling.eta": 0.5}, "sampling.eta", "memoryless"),
    ("adjoint_matching", {"sampling.noise_law": "cps"}, "sampling.noise_law", "memoryless"),
    ("adjoint_matching", {"objective.num_trained": 11}, "objective.num_trained", "exceeds sampling.num_steps=10"),
    ("adjusted_dft", {"objective.vary_steps": 6}, "objective.vary_steps", "leaves no step"),
    ("alignprop", {"sampling.max_k": 11}, "sampling.max_k", ""),
    ("awm", {"data": PROMPTS}, "data", "makes no groups"),
    ("nft", {"data.group_size": 1}, "data.group_size", "has none"),
    ("nft", {"data.skip_flat": True, "data.normalise": "running"}, "data.skip_flat", "teach too"),
    ("awm", {"objective.num_draws": 7}, "objective.num_draws", "exceeds sampling.num_steps=6"),
    ("awm", {"data.num_prompts": 1000}, "data.num_prompts", "advantages weigh the images"),
    ("d3po", {"data": PROMPTS}, "data", "makes no groups"),
    ("d3po", {"data.group_size": 1}, "data.group_size", "no other to be compared with"),
    ("d3po", {"data.train_fraction": 0.5}, "data.train_fraction", "below 1"),
    ("ddpo", {"data": PROMPTS}, "data", "makes no groups"),
    ("ddpo", {"sampling.eta": 0.0}, "sampling.noise_law", "draws no noise"),
    ("ddpo", {"objective.form": "score", "data.num_prompts": 1000}, "objective.form", "serves several updates"),
    ("dgpo", {"data": PROMPTS}, "data", "makes no groups"),
    ("dgpo", {"data.normalise": "running"}, "data.normalise", "do not sum to 0"),
    ("dgpo", {"objective.num_draws": 7}, "objective.num_draws", "exceeds sampling.num_steps=6"),
    ("diff_instruct", {"objective.t_min": 0.999}, "objective.t_min", "leaves no times"),
    ("diff_instruct", {"rewards": {"judge": {}}}, "rewards.judge", "not differentiable"),
    ("diff_instruct", {"combine": NORMALISED}, "combine.normalise", "not followed here"),
    ("diff_instruct", {"sampling.guidance_scale": 2.0}, "sampling.guidance_scale", "is not 1"),
    ("diffusion_dpo", {"data": PROMPTS}, "data", "holds no pairs"),
    (
        "diffusion_dpo",
        {"data": ONLINE, "rewards": {"clip": {}}, "combine": NORMALISED},
        "combine.normalise",
        "measures",
    ),
    ("diffusion_dpo", {"data": ONLINE, "objective.num_draws": 2}, "objective.num_draws", "come again"),
    ("draft", {"sampling.last_k": 0}, "sampling.last_k", "is 0"),
    (
        "draft",
        {"objective.kl": 0.1, "sampling.memory": "reversible", "sampling.step_rule": "leapfrog"},
        "objective.kl",
        "keeps no states",
    ),
    ("draft", {"objective.kl": 0.1, "model.checkpoint_blocks": True}, "model.checkpoint_blocks", "several steps"),
    ("dro", {"data": PROMPTS}, "data", "holds no labelled images"),
    ("dro", {"data": LABELS, "objective.bound": "guard"}, "objective.bound", "guard weighs"),
    ("dro", {"data": LABELS, "objective.bound": "clamp", "adapter.dropout": 0.1}, "adapter.dropout", "the reference"),
    ("dro", {"objective.bound": "none"}, "objective.bound", "without a lower bound"),
    ("drtune", {"sampling.subset_k": 6}, "sampling.subset_k", "exceeds 5"),
    ("fairness", {"train.batch_size": 3}, "train.batch_size", "too few images"),
    ("flowbp", {"sampling.step_rule": "dpmpp_2m"}, "sampling.step_rule", "single velocities"),
    ("flowbp", {"sampling.eta": 1.0}, "sampling.eta", "path is that of the ODE"),
    ("flowbp", {"sampling.noise_law": "cps", "sampling.eta": 0.5}, "sampling.noise_law", "path is that of the ODE"),
    ("flowbp", {"objective.active": 11}, "objective.active", "exceeds the"),
    ("flowbp", {"objective.form": "bridge", "objective.active": 1}, "objective.active", "both sides of the bridge"),
    ("flowbp", ONE | {"objective.form": "lagrange"}, "sampling.num_steps", "two segments"),
    ("grpo", {"data": PROMPTS}, "data", "makes no groups"),
    ("inversion_dpo", {"data": PROMPTS}, "data", "holds no pairs"),
    ("kto", {"data": PROMPTS}, "data", "holds no labelled images"),
    ("kto", {"adapter.dropout": 0.1}, "adapter.dropout", "the reference, through none"),
    ("leapalign", ONE, "sampling.num_steps", "two leaps"),
    ("nft", {"data": PROMPTS}, "data", "makes no groups"),
    ("nft", {"objective.num_draws": 7}, "objective.num_draws", "exceeds sampling.num_steps=6"),
    ("npo", {"sampling.guidance": GUIDED}, "sampling.guidance", "does not say how the negative"),
    ("refl", {"objective.last": 6}, "objective.last", "not all among the 6"),
    ("refl", {"objective.pretraining": 0.1}, "objective.pretraining", "needs images"),
    ("reno", {"combine": NORMALISED}, "combine.normalise", "depend on the others"),
    ("reno", {"objective.ranks.num_images": 6}, "objective.num_starts", "climbed from the first"),
    ("soft_prompt", {"objective.times": [0.5, 0.5]}, "objective.times", "low < high"),
    ("soft_prompt", {"rewards": {}}, "rewards", "learnt by one"),
    ("soft_prompt", {"rewards": {"judge": {}}}, "rewards.judge", "differentiable"),
    ("soft_prompt", {"model.offload_text": True}, "model.offload_text", "is what is trained"),
    ("soft_prompt", {"objective.learn_from": "pictures"}, "objective.learn_from", "gives none"),
    ("soft_prompt", {"evaluate": {"prompts": "shapes:report"}}, "evaluate", "both read the word"),
    (
        "soft_prompt",
        {"hooks.guard": {"prompts": "shapes:select", "rewards": {"clip": {"model": "embedded:shapes-clip"}}}},
        "hooks.guard",
        "both read the word",
    ),
    ("solver", {"sampling.eta": 1.0}, "sampling", "must be plain ddim"),
    ("ode_regression", {"sampling.guidance_scale": 2.0}, "sampling.guidance_scale", "is not 1"),
    ("solver", {"objective.teacher_steps": 4}, "objective.teacher_steps", "well above"),
    ("solver", {"objective.loss": "reward"}, "rewards", "maximises one"),
    (
        "solver",
        {"objective.loss": "reward", "rewards": {"clip": {}}, "combine": NORMALISED},
        "combine.normalise",
        "measures",
    ),
    ("solver", {"optim.weight_decay": 0.1}, "optim.weight_decay", "pulls the numbers"),
    ("spm", {"data": ONLINE, "rewards": {"brightness": {}}}, "data", "holds no pairs"),
    ("spo", {"adapter.dropout": 0.1}, "adapter.dropout", "the reference, through none"),
    ("spo", {"data": PROMPTS}, "data", "makes no pairs of sampling steps"),
    ("spo", {"combine": NORMALISED}, "combine.normalise", "is running, and nothing measures"),
    ("srpo", {"objective.times": [0.001, 0.5]}, "objective.times", "must stay within"),
    ("tailorpo", {"combine": {"normalise": "fixed"}}, "combine.normalise", "nothing measures"),
    ("tailorpo", {"data": PROMPTS}, "data", "makes no pairs of sampling steps"),
    ("tdm", {"sampling.guidance_scale": 2.0}, "sampling.guidance_scale", "is not 1"),
    ("tdm", {"sampling.eta": 1.0, "sampling.step_rule": "ddim"}, "sampling.step_rule", "one prediction"),
    ("tdm", {"objective.warmup": 200, "train.num_updates": 200}, "objective.warmup", "never moves"),
    ("tdm_r1", LCM, "sampling.step_rule", "Use ddim, euler, at eta 0"),
    ("tdm_r1", {"data": PROMPTS}, "data", "makes no groups"),
    ("tdm_r1", {"data.num_prompts": 1000}, "data.num_prompts", "fake learns"),
    ("unlearn", {"objective.times": [0.9, 0.1]}, "objective.times", "0 < low <= high < 1"),
    ("unlearn", {"data.prompts": ["nothing of it"]}, "objective.concepts", "stands in none"),
    ("unlearn", {"objective.target": "adversarial", "objective.warmup": 5000}, "objective.warmup", "is unlearnt"),
    ("unlearn", ONE | {"objective.target": "negative"}, "sampling.num_steps", "no state on the way"),
]
"""(the recipe NAME/shapes, changes, the key that is named, words of what is said)."""

FINE: list[tuple[str, dict[str, Any]]] = [
    ("adjoint_matching", {"objective.num_trained": 10}),
    ("tdm", LCM),
    ("adjusted_dft", {"objective.vary_steps": 5}),
    ("awm", {"objective.num_draws": 6}),
    ("d3po", {"data.group_size": 2}),
    ("ddpo", {"objective.form": "score"}),
    ("ddpo", {"data.group_size": 1, "data.normalise": "running"}),
    ("drtune", {"sampling.subset_k": 5}),
    ("flowbp", {"objective.form": "bridge", "objective.active": 2}),
    ("flowbp", {"objective.form": "lagrange", "sampling.num_steps": 2}),
    ("leapalign", {"sampling.num_steps": 2}),
    ("refl", {"objective.last": 5}),
    ("tailorpo", {"combine": {"normalise": "fixed", "statistics": {"pick": [4.0, 1.0]}}}),
    ("soft_prompt", {"objective.gradient": "zeroth", "rewards": {"judge": {}}}),
    ("unlearn", {"objective.target": "negative", "sampling.num_steps": 2}),
]
"""Just what is still possible."""


def loaded(name: str, changes: dict[str, Any]):
    return load_recipe(f"{name}/shapes", changes)


@pytest.mark.parametrize(("name", "changes", "key", "said"), WRONG)
def test_what_cannot_be_is_refused_by_its_key(name, changes, key, said):
    with pytest.raises(UserError) as raised:
        loaded(name, changes)
    lines = str(raised.value).splitlines()
    assert any(f": {key}: " in f": {line}" and said in line for line in lines), lines


@pytest.mark.parametrize(("name", "changes"), FINE)
def test_what_is_just_possible_is_not(name, changes):
    loaded(name, changes)


def test_every_objective_that_refuses_something_is_tried():
    shapes = {name.partition("/")[0] for name in recipes.names() if name.endswith("/shapes")}
    refusing = {name for name in OBJECTIVES.names() if hasattr(OBJECTIVES.config_class(name), "conflicts")}
    assert refusing & shapes <= {name for name, *_ in WRONG}
    for name in sorted(shapes):
        loaded(name, {})


def negative(**settings: Any) -> dict[str, Any]:
    """Changes to a recipe whose unprompted branch has the adapter `negative`, or other `settings`."""
    return {
        "sampling": {"num_steps": 6, "guidance": {"scale": 2.0, "negative": {"adapters": {"negative": 1.0}} | settings}}
    }


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("draft", {}, "where does the adapter `negative` lie"),
        ("npo", {"source": "somewhere"}, "this run trains the negative"),
        ("draft", {"adapters": {"other": 1.0}}, "names other"),
    ],
)
def test_the_adapters_of_the_unprompted_branch(name, settings, said):
    with pytest.raises(UserError, match=said):
        loaded(name, negative(**settings))


def test_a_weaker_self_and_a_trained_negative_need_no_source():
    loaded("draft", negative(adapters={"default": 0.5}))
    loaded("npo", negative())
