"""`align publish`, `align pull` and `align export`: an adapter on its way to other people and other programs."""

from pathlib import Path
from typing import Annotated

import typer

from align.commands.group import recipe_names
from align.commands.values import finite, home

Run = Annotated[Path, typer.Argument(help="The folder of a finished run.", callback=home)]
Adapter = Annotated[
    Path, typer.Argument(help="A run's folder, an adapter's folder, or its .safetensors file.", callback=home)
]


def publish(
    run: Run,
    repo: Annotated[str, typer.Option(help="Where to, on the Hub: owner/name; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Only for you and your organisation.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be sent; the Hub is not asked.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the files into this folder instead of sending them.", callback=home),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Of the adapter; default: its base model's, if known.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also into a repository that was not published from here.")
    ] = False,
) -> None:
    """Publish a run's adapter: card, weights, recipe, scores and pictures, and nothing else."""
    from align.reports import summary
    from align.share import publish as publishing
    from align.share.upload import push

    files = publishing.compose(run, repo, licence=licence)
    for file in files:
        typer.echo(f"{len(file.content):>12,}  {file.name}")
    if own := publishing.left_out(run):
        typer.echo(f"not among them: {', '.join(own)}, which the recipe needs and the card names")
    if why := summary.unmoved(summary.read(run.expanduser())):
        typer.echo(f"note: {why}", err=True)
    if output is not None:
        publishing.write(files, output)
    if output is not None or dry_run:
        where = f": {output}" if output is not None else "; --output FOLDER writes it to look at"
        typer.echo(f"not published; this is what would be{where}")
        return
    typer.echo(push(repo, files, private=private, overwrite=overwrite, say=lambda text: typer.echo(text, err=True)))


def pull(
    repo: Annotated[str, typer.Argument(help="owner/name on the Hub.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder; default: pulled/NAME.", callback=home)
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit.")] = None,
    trust_recipe: Annotated[
        bool, typer.Option("--trust-recipe", help="Take a recipe that names code, which runs when it is used.")
    ] = False,
) -> None:
    """Fetch a published adapter, for sample, evaluate and export."""
    from align.share.pull import pull as fetch

    typer.echo(fetch(repo, output, revision=revision, trust=trust_recipe))


def export(
    source: Adapter,
    format: Annotated[
        str, typer.Option("--format", "-f", help="kohya, comfyui, peft, merged; learnt tokens: textual_inversion.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; default: exports/NAME-FORMAT.", callback=home)
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Says which model the adapter is for; default: the recipe.yaml beside it.", autocompletion=recipe_names
        ),
    ] = None,
    strength: Annotated[float, typer.Option(help="What other programs will call 1.", callback=finite)] = 1.0,
    step: Annotated[
        int | None, typer.Option(min=0, help="Of a run: the adapter after this update, exported or in a checkpoint.")
    ] = None,
) -> None:
    """Write an adapter for another program, or merge it into the base model's weights."""
    from align.share.export import export as write

    written = write(source, format, output, recipe=recipe, strength=strength, step=step)
    typer.echo(written)
    if format == "merged":
        typer.echo(
            f'next:  DiffusionPipeline.from_pretrained("{written}")   # in Python, or any program of diffusers',
            err=True,
        )
