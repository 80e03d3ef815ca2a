"""Trainings of the documentation, cut short."""

from collections.abc import Callable
from typing import Any

from align.config import Recipe, load_recipe

SMALL = {"train.num_updates": 2, "train.batch_size": 4, "train.micro_batch_size": None, "hooks": {}}
FEW = {"evaluate.num_prompts": 8, "evaluate.num_pictures": 4}


def small(recipe: Recipe) -> Recipe:
    """The same in two updates of four rows."""
    pairs = {"train.batch_size": 2} if hasattr(recipe.data, "pairs") else {}
    return load_recipe(recipe, SMALL | pairs | (FEW if recipe.evaluate else {}))


def shortly(train: Callable[..., Any]) -> Callable[..., Any]:
    """`align.train` for small trainings."""

    def run(recipe: Any, overrides: Any = (), *, resume: str = "auto", **settings: Any) -> Any:
        return train(small(load_recipe(load_recipe(recipe, overrides), settings)), resume=resume)

    return run
