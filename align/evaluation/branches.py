"""The unprompted branch of an arm's guidance: as its name, the run that trained a negative, or the recipe says."""

from collections.abc import Callable

from align.config import Recipe, load_recipe
from align.errors import UserError
from align.evaluation.arms import Arm
from align.policy.branches import NEGATIVE, opposite
from align.policy.mix import Located, locate


def of_recipe(recipe: Recipe) -> Callable[[Arm, dict[str, Located]], Arm]:
    """What gives an arm, drawn as `recipe` says, its unprompted branch; adapters that this needs join those found."""
    how = recipe.sampling.how

    def branched(arm: Arm, found: dict[str, Located]) -> Arm:
        if arm.negative is None:
            arm = _negatives(arm, found)
        if arm.negative is None and how.negative is not None and how.negative.source is not None:
            place = locate(how.negative.source)
            other = opposite(arm.adapters, how.negative.adapters, place.adapter)
            found |= {place.adapter: place} if other and place.adapter in other else {}
            arm = Arm(arm.label, arm.adapters, other, arm.noise, arm.count)
        elif arm.negative is None and how.negative is not None:  # a weaker self
            other = opposite(arm.adapters, {k: w for k, w in how.negative.adapters.items() if k != NEGATIVE})
            arm = Arm(arm.label, arm.adapters, other if arm.adapters else None, arm.noise, arm.count)
        if arm.negative is not None and how.plain == 1:
            raise UserError(
                "an arm has adapters on the unprompted branch of guidance, and the recipe draws without guidance. Give "
                "--set sampling.guidance_scale=5, or the recipe's own."
            )
        return arm

    return branched


def _negatives(arm: Arm, found: dict[str, Located]) -> Arm:
    """Adapters that were trained as a negative are moved to where they belong, as strong as their run draws them."""
    own, other = dict(arm.adapters), {}
    kept = 0.0
    for adapter, weight in arm.adapters.items():
        recipe = found[adapter].recipe
        loaded = None if recipe is None else load_recipe(recipe, on_disk=False)
        if loaded is not None and getattr(loaded.objective, "train", "") == NEGATIVE:
            wanted = negative.adapters if (negative := loaded.sampling.how.negative) else {}
            other[adapter], kept = weight * wanted.get(NEGATIVE, 1.0), wanted.get("default", 0.0)
            del own[adapter]
    if not other:
        return arm
    branch = {**{adapter: kept * weight for adapter, weight in own.items()}, **other}
    branch = {adapter: weight for adapter, weight in branch.items() if weight != 0}
    return Arm(arm.label, own, None if branch == own else branch, arm.noise, arm.count)
