"""Whether the window of grouped data fits into the steps: at the recipe, and where the model's own times are known."""

from collections.abc import Iterator
from typing import Any

from align.data._wanted import Wanted
from align.errors import UserError
from samplers import Window, densities


def conflicts(window: Any, sampling: Any) -> Iterator[tuple[str, str]]:
    """What no model's times can mend. window: the data's block; it is looked at where steps draw noise."""
    if sampling is None or not sampling.stochastic or window.start == "all":
        return
    reach = Window(window.start, window.size).reach([True] * sampling.num_steps)
    if window.size > reach:
        where = "the first half of " if window.start == "first_half" else ""
        enough = 2 * window.size if window.start == "first_half" else window.size
        lower = f"Set it to {reach}, or sampling.num_steps" if reach else "Set sampling.num_steps"
        yield (
            ".window.size",
            f"{window.size} does not fit into {where}sampling.num_steps={sampling.num_steps}. {lower} to {enough} or "
            "more.",
        )


def possible(window: Window, wanted: Wanted, sampling: Any, model: Any) -> list[bool]:
    """One bool a step: whether it has a density.

    Raises UserError where steps are trained and the window finds too few of them.
    """
    found = densities(sampling.law(), model.schedule, sampling.grid(model))
    size, reach = 1 if window.start == "all" else window.size, window.reach(found)
    if wanted.transitions and size > reach:
        steps, short = len(found), size - reach
        enough = max(2 * size, steps + short) if window.start == "first_half" else steps + short
        lower = f"Set data.window.size to {reach}, or " if reach else "Set "
        raise UserError(
            f"data.window: {size} of the steps are to be trained, and {reach} of sampling.num_steps={steps} can be: a "
            f"step that ends on data has no density. {lower}sampling.num_steps to {enough} or more."
        )
    return found
