"""The command `align`. Each command imports what it needs when it runs: `align --help` loads no torch."""

import functools
import gc
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from align.commands import begin as init_cli
from align.commands import evaluate as evaluate_cli
from align.commands import hub as hub_cli
from align.commands import lists as lists_cli
from align.commands import noise as reno_cli
from align.commands import preferences as preferences_cli
from align.commands import report as report_cli
from align.commands import score as score_cli
from align.commands import serve as serve_cli
from align.commands import vote as vote_cli
from align.commands import watch as watch_cli
from align.commands.group import Listing, recipe_names
from align.commands.pipes import to_its_end, to_nowhere
from align.commands.values import NEGATIVE, SIZE, STEPS, finite, settings_among
from align.errors import UserError
from align.files.output import REFUSED
from rewards._errors import RegistryError, RewardError

for _noisy in ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)  # to import torchao is to be warned of its own enums and absences

app = typer.Typer(
    name="align",
    cls=Listing,
    help="Diffusion alignment: train an adapter on rewards or preferences, from a recipe.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

NO_HOME = "determine home directory"
"""Of what pathlib says of ~nobody."""
CARD = "24GB"
"""What is planned for where nothing is said and no GPU is here."""
RecipeArgument = Annotated[
    str,
    typer.Argument(help="A recipe's name (align recipes), its file, or a run's folder.", autocompletion=recipe_names),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes to it: optim.lr=1e-4 train.num_updates=200 ...")]


def _plainly(command: Callable[..., Any]) -> Callable[..., Any]:
    """A user's mistake ends with its one line and exit code 2, Ctrl-C with a word and 130, neither with a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (UserError, RewardError, RegistryError) as error:
            if os.environ.get("ALIGN_TRACEBACK"):
                raise
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:  # while something loads, before what can be gone on with has begun
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:  # `align recipes | head`
            to_nowhere(sys.stdout.fileno())
            raise typer.Exit(0) from None
        except RuntimeError as error:
            if NO_HOME not in str(error) or os.environ.get("ALIGN_TRACEBACK"):
                raise
            typer.echo("~: there is no such user's home. Write the path out.", err=True)
            raise typer.Exit(2) from None
        except OSError as error:
            if error.errno not in REFUSED or os.environ.get("ALIGN_TRACEBACK"):
                raise
            where = error.filename or "output"
            typer.echo(f"{where}: cannot be written ({error.strerror}). Make room, or choose another place.", err=True)
            raise typer.Exit(2) from None

    return run


@contextmanager
def _reading() -> Iterator[None]:
    """The collector rests while libraries load: what they make lives as long as the program, and to look through it
    again and again is a third of the time that the answer to a wrong recipe takes."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _version(asked: bool) -> None:
    if asked:
        from align import __version__

        typer.echo(f"diffalign {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it, no more.")
    ] = False,
) -> None:
    """Diffusion alignment: train an adapter on rewards or preferences, from a recipe."""


@app.command()
@_plainly
@to_its_end
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Annotated[
        str, typer.Option(help="auto: go on from the run's last good checkpoint, if any; a checkpoint; or never.")
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe and print the plan, no more.")] = False,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            "--gpu-memory", "--memory", help="With --dry-run: say whether it fits a GPU of so many GB, and what to set."
        ),
    ] = None,
) -> None:
    """Train what a recipe says, and write the run's folder: adapter, metrics, samples, summary."""
    if gpu_memory and not dry_run:
        raise UserError("--gpu-memory: is of --dry-run. Add that, or leave both out to train.")
    with _reading():
        from align.config import load_recipe

        loaded = load_recipe(recipe, overrides or ())
    if dry_run:
        from align.plan import plan
        from align.plan.propose import gigabytes

        told = functools.partial(typer.echo, err=True)
        typer.echo(plan(loaded, gpu_memory=gigabytes(gpu_memory, "--gpu-memory") if gpu_memory else None, say=told))
        return
    from align.plan.propose import foretold, of_this_machine
    from align.run import train as start

    size = of_this_machine() if os.environ.get("RANK", "0") == "0" else None
    command = shlex.join(["align", "plan", recipe, *(overrides or ())])
    if size and (said := foretold(loaded, size, command)):
        typer.echo(said)
    run = start(loaded, resume=resume)
    if run.interrupted:
        raise typer.Exit(130 if run.interrupted == "SIGINT" else 143)


@app.command()
@_plainly
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", "--gpu-memory", help="Of the GPU: 24GB, 16GB ... Default: this machine's, or 24GB."),
    ] = None,
) -> None:
    """Say what to change so that a recipe fits a GPU, cheapest first, as overrides to paste."""
    with _reading():
        from align.config import load_recipe
        from align.plan.propose import described, gigabytes, of_this_machine

    told = functools.partial(typer.echo, err=True)
    command = shlex.join(["align", "train", recipe, *(overrides or ())])
    loaded = load_recipe(recipe, overrides or ())
    size = gigabytes(memory) if memory else of_this_machine()
    if size is None:
        size = gigabytes(CARD)
        told(f"plans for a GPU of {CARD}, as this machine has none; --memory names another size")
    typer.echo(described(loaded, size, told, command))


@app.command()
@_plainly
@to_its_end
def sample(
    source: Annotated[
        str,
        typer.Argument(
            help="A run's folder, a checkpoint, an adapter, or a recipe for its base model.",
            autocompletion=recipe_names,
        ),
    ],
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts, or files and sets of them.")],
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, help="Images of each prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same images.")] = 0,
    strength: Annotated[float, typer.Option(help="Of the adapter; 0 is the base model.", callback=finite)] = 1.0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder; default: RUN/images/strength-S, or samples/NAME of a recipe."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Model and sampling of an adapter that has no recipe.", autocompletion=recipe_names),
    ] = None,
    steps: STEPS = None,
    size: SIZE = None,
    negative_prompt: NEGATIVE = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="A change: --set sampling.num_steps=20, or without --set.")
    ] = None,
    text_steps: Annotated[
        int | None, typer.Option(min=0, help="Steps that optimise each prompt's encoding first (aesthetic gradients).")
    ] = None,
    towards: Annotated[Path | None, typer.Option(help="... towards the pictures of a folder.")] = None,
    reward: Annotated[list[str] | None, typer.Option(help="... or by rewards of the recipe, or any by name.")] = None,
    tower: Annotated[
        str | None, typer.Option(help="The CLIP whose text tower the text encoder is; default: OpenAI's ViT-L/14.")
    ] = None,
    text_lr: Annotated[float, typer.Option(min=0, help="Their learning rate.", callback=finite)] = 1e-4,
) -> None:
    """Draw images with a run's adapter, or of a recipe's base model."""
    prompts, changes = settings_among(prompts, change, steps=steps, size=size, negative=negative_prompt)
    if not prompts:
        raise UserError('there is no prompt. Write one, as in `align sample RUN "a red circle"`, or name a file.')
    from align.commands.sample import Text
    from align.commands.sample import sample as draw

    options: dict[str, Any] = {"num_images": num_images, "seed": seed, "strength": strength, "output": output}
    options["recipe"] = recipe
    if text_steps is None and (towards or reward or tower):
        raise UserError("--towards, --reward, --tower: are of --text-steps. Add it, such as --text-steps 10.")
    if text_steps is not None:
        options["text"] = Text(text_steps, towards, tuple(reward or ()), tower, text_lr)
    for path in draw(source, prompts, changes, **options):
        typer.echo(path)


@app.command()
@_plainly
def doctor() -> None:
    """Say what this machine has, what is missing, and whether a tiny training works."""
    from align.commands.doctor import report

    if not report(typer.echo):
        raise typer.Exit(1)


@app.command(
    "shapes",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@_plainly
def shapes(context: typer.Context) -> None:
    """The embedded world: render, judge, prompts (align shapes --help)."""
    from align.shapes.cli import app as shapes_app

    shapes_app(args=context.args or ["--help"], prog_name="align shapes")


for _command in (lists_cli.recipes, lists_cli.rewards, lists_cli.models, lists_cli.components, lists_cli.schema):
    app.command()(_plainly(_command))
app.command()(_plainly(init_cli.init))
app.command(cls=score_cli.Many)(_plainly(score_cli.score))
app.command(cls=score_cli.Many)(_plainly(to_its_end(evaluate_cli.evaluate)))
app.command("serve-reward")(_plainly(serve_cli.serve_reward))
app.command()(_plainly(to_its_end(preferences_cli.pairs)))
app.command()(_plainly(to_its_end(preferences_cli.cache)))
app.command()(_plainly(vote_cli.vote))
app.command()(_plainly(report_cli.report))
app.command()(_plainly(watch_cli.watch))
for _command in (hub_cli.publish, hub_cli.pull, hub_cli.export):
    app.command()(_plainly(_command))
app.command()(_plainly(to_its_end(reno_cli.reno)))
app.command("best-of")(_plainly(to_its_end(reno_cli.best_of)))
app.command()(_plainly(to_its_end(reno_cli.redraw)))
