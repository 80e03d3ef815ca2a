"""What the comparisons put together alike: a recipe's policy, its rewards, and those who know the truth."""

from collections.abc import Mapping
from typing import Any

from align.config import Recipe
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.registry import MODELS, REWARDS, build
from rewards import Composite

JUDGES: dict[str, dict[str, Any]] = {
    "gold": {"name": "gold"},
    "judge_graded": {"name": "judge_graded"},
    "judge": {"name": "judge"},
    "pick": {"name": "clip", "model": "embedded:shapes-pick", "form": "logit"},
    "clip": {"name": "clip", "model": "embedded:shapes-clip"},
}


def policy(recipe: Recipe, seed: int) -> Policy:
    """The recipe's model with its adapter."""
    model = build(MODELS, recipe.model)
    told = {"component": model.network_name, "seed": seed}
    return Policy(model, Adapter(recipe.adapter, model.network, list(model.lora_targets), **told))


def composite(configs: Mapping[str, Any], *combine: Any) -> Composite:
    """The rewards of a block."""
    return Composite({label: build(REWARDS, config) for label, config in configs.items()}, *combine)


def judges() -> Composite:
    """All of JUDGES."""
    return Composite({label: build(REWARDS, REWARDS.config_class(c["name"])(**c)) for label, c in JUDGES.items()})
