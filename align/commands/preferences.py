"""`align pairs` and `align cache`: what a run on preference pairs does before its first update, by itself."""

from typing import Annotated

import typer

RecipeArgument = Annotated[str, typer.Argument(help="A recipe's name (align recipes), its file, or a run's folder.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes to it: data.make.num_prompts=100 ...")]


def pairs(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Make a recipe's preference pairs from its model and a judge (data.make); goes on where it was ended."""
    from align.run import prepare

    typer.echo(prepare(recipe, overrides or (), pairs_only=True))


def cache(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Store a recipe's pairs as latents and embeddings, as the first training would; goes on where it was ended."""
    from align.run import prepare

    typer.echo(prepare(recipe, overrides or ()))
