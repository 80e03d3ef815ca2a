"""Prompts that a reward cannot read are refused before anything is trained or drawn, not when they are first scored."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from align.data._base import prompts_of
from align.errors import UserError
from align.registry import RewardConfig

Readers = Iterable[tuple[str, RewardConfig]]
"""(label, reward) of those that are to score some prompts."""


def readers(recipe: Mapping[str, Any], *blocks: Mapping[str, RewardConfig]) -> list[tuple[str, RewardConfig]]:
    """Those of these blocks that ask something of their prompts, and of the rewards by which the recipe's sampling
    chooses its scales: these look at whatever is drawn."""
    sampling = recipe.get("sampling")
    dynamic = None if sampling is None else sampling.how.dynamic
    found = [*blocks, {} if dynamic is None else dynamic.rewards]
    rewards = [one for block in found for one in block.items() if isinstance(one[1], RewardConfig)]
    return [(label, reward) for label, reward in rewards if reward.demanding()]


def scoring(recipe: Mapping[str, Any]) -> list[tuple[str, RewardConfig]]:
    """Those that score what is drawn in training."""
    return readers(recipe, recipe.get("rewards") or {})


def unread(prompts: Sequence[str], readers: Readers) -> Iterator[str]:
    """One line for each reward that cannot read all of these prompts: the first that it cannot, and how many there
    are."""
    for label, reward in readers:
        found = list(reward.unreadable(dict.fromkeys(prompts)))
        if found:
            more = f" ({len(found)} of {len(prompts)} prompts are so.)" if len(found) > 1 else ""
            first = next(n for n, prompt in enumerate(prompts, 1) if any(True for _ in reward.unreadable([prompt])))
            yield f"reward {label} cannot score all of them, first prompt {first} of {len(prompts)}: {found[0]}{more}"


def looked_at(source: Any, recipe: Any) -> None:
    """Raises UserError for what is wrong with a recipe's data and can be known before a model is loaded."""
    if hasattr(source, "look"):
        source.look()
    if not hasattr(recipe.data, "make"):  # rows of pictures are scored by nobody
        refuse("data", prompts_of(source), scoring(dict(recipe)))


def refuse(key: str, prompts: Sequence[str], readers: Readers) -> None:
    """Raises UserError where `unread` has something to say; `key` is where the prompts come from."""
    for text in unread(prompts, readers):
        raise UserError(f"{key}: {text}")
