"""`align pairs` and `align cache`: what a run on judged images does before its first update, by itself."""

import math
import shlex
from typing import Annotated

import typer

from align.commands.group import recipe_names
from align.errors import UserError

RecipeArgument = Annotated[
    str,
    typer.Argument(help="A recipe's name (align recipes), its file, or a run's folder.", autocompletion=recipe_names),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes to it: data.make.num_prompts=100 ...")]


def pairs(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="Make labelled images, each with a thumb, of a recipe of pairs too.")
    ] = False,
    threshold: Annotated[
        str | None, typer.Option(help="Least score of a good image, or median, the default; with --labels.")
    ] = None,
) -> None:
    """Make a recipe's preference pairs or labels from its model and a judge (data.make); goes on where it was ended."""
    if threshold is not None and not labels:
        raise UserError("--threshold: pairs have none. Give --labels too.")
    limit = _limit(threshold or "median") if labels else None
    from align.run import prepare

    typer.echo(prepare(recipe, overrides or (), pairs_only=True, threshold=limit))


def _limit(text: str) -> float | str:
    if text == "median":
        return text
    try:
        if math.isfinite(limit := float(text)):
            return limit
    except ValueError:
        pass
    raise UserError(f"--threshold {text}: is no number. Write one, such as 0.5, or median.")


def cache(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Store a recipe's pairs or labels as latents and embeddings, as training would; goes on where it was ended."""
    from align.run import prepare

    folder, more = prepare(recipe, overrides or ()), "".join(f" {shlex.quote(each)}" for each in overrides or ())
    typer.echo(f"{folder} is cached\nnext:  align train {shlex.quote(recipe)}{more}")
