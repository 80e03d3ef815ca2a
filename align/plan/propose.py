"""What to change so that a recipe fits: one change after another in the order of their price, until it does.

Cheap changes cost time, dear ones precision or size. When it fits, what turned out not to be needed is taken back,
dearest first.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from align.config import Recipe, load_recipe
from align.errors import UserError
from align.plan.budget import GIB, Budget, budget
from align.plan.rehearsal import Rehearsal, rehearse
from align.registry import EMBEDDED

PLACES = ("offload", "offload_text", "text_on_cpu")
"""Settings of a model that move weights about and change no call."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Change:
    """Overrides of a recipe, and what they cost."""

    overrides: Mapping[str, Any]
    price: str


@dataclass(frozen=True)
class Proposal:
    """Changes that were found, and what the recipe needs with them."""

    changes: tuple[Change, ...]
    needed: Budget
    fits: bool

    def overrides(self) -> list[str]:
        """As they are written behind a command."""
        merged: dict[str, Any] = {}
        for change in self.changes:
            merged |= change.overrides
        return _written(merged)


def changes(recipe: Recipe, found: Rehearsal) -> Iterator[Change]:
    """All that may be changed of this recipe, cheapest first; each stands on those before it."""
    model, train = recipe.model, recipe.train
    if getattr(model, "decode_chunk", 0) is None:
        yield Change({"model.decode_chunk": 1}, "nothing: images are decoded one by one")
    if getattr(model, "offload_text", None) is False:
        yield Change({"model.offload_text": True}, "seconds for prompts that are new")
    if offloads := dict(_offloads(recipe)):
        yield Change(offloads, "rewards travel to the GPU when they are asked")
    rows = min(train.micro_batch_size or train.batch_size, train.batch_size)
    for smaller in (2**power for power in reversed(range(max(rows - 1, 0).bit_length()))):
        yield Change({"train.micro_batch_size": smaller}, "time: smaller pieces, the same result")
    if getattr(recipe.data, "rollout_size", 1) > 1:
        yield Change({"data.rollout_size": 1}, "time: what is learnt from is drawn one by one")
    if recipe.evaluate is not None and recipe.evaluate.batch_size is None:
        yield Change({"evaluate.batch_size": 1}, "time: pictures are drawn one by one")
    if getattr(model, "checkpoint_blocks", None) is False:
        yield Change({"model.checkpoint_blocks": True}, "about a third more time in the calls with gradient")
    if getattr(model, "text_on_cpu", None) is False:
        cost = "each new prompt is encoded on the CPU: seconds to a minute"
        yield Change({"model.offload_text": False, "model.text_on_cpu": True}, cost)
    if getattr(model, "offload", "none") is None and getattr(model, "quantize", None) is None and not train.compile:
        yield Change(
            {"model.offload": "group"},
            "time: each block of the network travels to the GPU for each call, there and back",
        )
    if getattr(getattr(model, "dtype", None), "vae", None) in ("auto", "fp32"):
        yield Change({"model.dtype.vae": "bf16"}, "precision: pixels of 8 bits, and gradients through them")
    if getattr(model, "quantize", "none") is None:
        whole = {"model.offload": None} if hasattr(model, "offload") else {}
        price = "precision: the frozen base in {} bits (diffalign[bnb]); some time"
        yield Change(whole | {"model.quantize": "int8"}, price.format(8))
        yield Change(whole | {"model.quantize": "nf4"}, price.format(4.5))
    elif getattr(model, "quantize", "none") == "int8":
        yield Change({"model.quantize": "nf4"}, "precision: the frozen base in 4.5 bits in place of 8; some time")
    yield from _smaller(recipe, found)


def propose(
    recipe: Recipe, memory: float, rehearsed: dict[str, Rehearsal] | None = None, say: Say = lambda text: None
) -> Proposal:
    """The cheapest changes after which `recipe` fits a GPU of `memory` GiB; `fits` is false where none does."""
    taken: list[Change] = []
    rehearsed = {} if rehearsed is None else rehearsed  # of this recipe, if it has been rehearsed already
    needed = _needed(recipe, taken, rehearsed, say)  # and so the recipe as it is stands first
    left = list(changes(recipe, next(iter(rehearsed.values()))))
    while needed.total > memory * GIB:
        before = len(taken)
        for change in left:
            if needed.total <= memory * GIB:
                break
            less = _needed(recipe, [*taken, change], rehearsed, say)
            if less.total < 0.995 * needed.total:
                taken, needed = [*taken, change], less
        left = [change for change in left if change not in taken]
        if len(taken) == before:  # what helped nothing may help now that another phase needs most
            break
    if needed.total > memory * GIB:
        return Proposal(tuple(taken), needed, False)
    for change in reversed(taken[:-1]):
        without = [one for one in taken if one is not change]
        if (more := _needed(recipe, without, rehearsed, say)).total <= memory * GIB:
            taken, needed = without, more
    return Proposal(tuple(taken), needed, True)


def verdict(recipe: Recipe, rehearsal: Rehearsal, memory: float, say: Say = lambda text: None) -> str:
    """Whether it fits, in one line, and what to set where it does not; `rehearsal` is of the recipe on a GPU."""
    needed = budget(recipe, rehearsal, gpu=True)
    if needed.total <= memory * GIB:
        return f"yes, {memory - needed.total / GIB:.1f} GiB are left"
    found = propose(recipe, memory, {_decides(recipe): rehearsal}, say)
    if not found.fits:
        return f"no, by no change that is known here: with all of them it needs {found.needed.total / GIB:.1f} GiB"
    return f"no; {found.needed.total / GIB:.1f} GiB with these behind the command: {' '.join(found.overrides())}"


def described(recipe: Recipe, memory: float, say: Say = lambda text: None, command: str = "") -> str:
    """The proposal as `align plan` prints it, to be put behind `command`; `say` is told of each rehearsal, which takes
    a while, and of what it gave."""
    rehearsed: dict[str, Rehearsal] = {}
    before = _needed(recipe, [], rehearsed, say)
    if before.total <= memory * GIB:
        return f"fits {memory:g} GiB as it is: it needs {before.total / GIB:.1f} GiB, most in {before.where}"
    as_it_is = f"needs {before.total / GIB:.1f} GiB as it is, most in {before.where}"
    say(f"{as_it_is}; changes follow, cheapest first, each a rehearsal, until it fits {memory:g} GiB")
    found = propose(recipe, memory, rehearsed, say)
    lines = [as_it_is, ""]
    lines += [
        f"{' '.join(Proposal((change,), before, False).overrides())}  # {change.price}" for change in found.changes
    ]
    lines += ["", f"with all of these: {found.needed.total / GIB:.1f} GiB, most in {found.needed.where}"]
    if found.fits:
        return "\n".join([*lines, "", f"to paste: {command} {' '.join(found.overrides())}".replace(":  ", ": ")])
    return "\n".join([*lines, f"That does not fit {memory:g} GiB, and nothing more is known here: a smaller model."])


def foretold(recipe: Recipe, memory: float, command: str) -> str:
    """What a training on a GPU of `memory` GiB will need, in one line for its start, and where to look if that is more;
    "" of what a plan knows nothing of."""
    model = recipe.model
    if str(getattr(model, "checkpoint", "")).startswith(EMBEDDED) or getattr(recipe.objective, "unplanned", ""):
        return ""
    try:
        needed = budget(recipe, rehearse(recipe, with_rewards=True, gpu=True), gpu=True)
    except UserError:
        return ""  # training says what is wrong, or knows a checkpoint that cannot be planned
    if needed.total <= memory * GIB:
        return f"by its plan it takes about {needed.total / GIB:.1f} of {memory:.1f} GiB"
    return (
        f"by its plan it takes about {needed.total / GIB:.1f} GiB, most in {needed.where}, and there are {memory:.1f}: "
        f"it may run out of memory. {command} says what to change."
    )


def _needed(recipe: Recipe, taken: list[Change], rehearsed: dict[str, Rehearsal], say: Say) -> Budget:
    merged: dict[str, Any] = {}
    for change in taken:
        merged |= change.overrides
    changed = load_recipe(recipe, merged, on_disk=False) if merged else recipe
    if (key := _decides(changed)) not in rehearsed:
        say("rehearses the recipe " + (f"with {' '.join(_written(taken[-1].overrides))}" if taken else "as it is"))
        rehearsed[key] = rehearse(changed, with_rewards=True, gpu=True)
        if taken:
            say(f"  {budget(changed, rehearsed[key], gpu=True).total / GIB:.1f} GiB")
    return budget(changed, rehearsed[key], gpu=True)


def _written(overrides: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_plain(value)}" for key, value in overrides.items() if value is not None]


def _decides(recipe: Recipe) -> str:
    """All that a rehearsal depends on and a change may touch, as a key; where weights lie is the budget's."""
    model = recipe.model.model_copy(update={key: None for key in PLACES if hasattr(recipe.model, key)})
    return str((model, recipe.sampling, recipe.rewards, recipe.train.micro_batch_size))


def _offloads(recipe: Recipe) -> Iterator[tuple[str, bool]]:
    places: list[tuple[str, Mapping[str, Any]]] = [("rewards", recipe.rewards)]
    places += [(f"hooks.{name}.rewards", getattr(hook, "rewards", None) or {}) for name, hook in recipe.hooks.items()]
    if recipe.evaluate is not None:
        places.append(("evaluate.rewards", recipe.evaluate.rewards))
    for place, rewards in places:
        for label, config in rewards.items():
            if not config.offload and config.card.size[:1].isdigit():
                yield f"{place}.{label}.offload", True


def _smaller(recipe: Recipe, found: Rehearsal) -> Iterator[Change]:
    """Three quarters and a half of each side, in steps of 64 pixels."""
    size = recipe.sampling.image_size
    if size is None:
        side = round(math.sqrt(found.pixels))
        size = (side, side)
    for share in (0.75, 0.5):
        smaller = [max(64, round(side * share / 64) * 64) for side in size]
        overrides: dict[str, Any] = {"sampling.image_size": smaller}
        if recipe.evaluate is not None and recipe.evaluate.sampling is not None:
            overrides["evaluate.sampling.image_size"] = smaller
        yield Change(overrides, f"resolution: {smaller[0]} x {smaller[1]} pixels")


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def of_this_machine() -> float | None:
    """GiB of its first GPU, or None."""
    return torch.cuda.get_device_properties(0).total_memory / GIB if torch.cuda.is_available() else None


def gigabytes(text: str, option: str = "--memory") -> float:
    """ "16", "16GB" or "16 GiB" -> 16.0: a card of 16 GB has 16 GiB."""
    number = text.strip().lower().removesuffix("ib").removesuffix("b").removesuffix("g").strip()
    try:
        found = float(number)
    except ValueError:
        found = 0.0
    if not 0 < found < 10_000:
        raise UserError(f"{option} {text}: is no size of a GPU's memory. Give it in GB, such as 16GB.")
    return found
