"""`align reno`, `align best-of` and `align redraw`: one image made better by its noise alone."""

import math
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from align import recipes
from align.commands.group import recipe_names
from align.commands.values import finite, home, settings_among
from align.errors import UserError
from align.noise.recipe import recipe_of

RECIPE = "reno/shapes"
"""What `align reno "..."` alone optimises with: the embedded model and its rewards."""
FEW = 4  # images whose path is drawn unless asked otherwise

Prompts = Annotated[list[str] | None, typer.Argument(help="One or more prompts.")]
File = Annotated[str | None, typer.Option("--prompts", help="Prompts from a file (.txt, .jsonl, .csv ...), or a set.")]
Count = Annotated[int | None, typer.Option(min=1, help="Only the first so many of --prompts.")]
Model = Annotated[str | None, typer.Option(help="Hub id or folder of any model family; default: the embedded one.")]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", help="Settings; default: those made for the model.", autocompletion=recipe_names),
]
Rewards = Annotated[list[str] | None, typer.Option("--reward", help="name=weight; only the named ones are used.")]
Seeds = Annotated[
    int | None,
    typer.Option("--seeds", "--num-images", min=1, help="Images of each prompt; default: as the recipe says."),
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same images.")]
Batch = Annotated[
    int | None, typer.Option("--batch-size", "--batch", min=1, help="Images optimised at once, over all processes.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the images.", callback=home)]
Change = Annotated[list[str] | None, typer.Option("--set", help="A change to the recipe: --set optim.lr=2.")]
Again = Annotated[bool, typer.Option("--again", help="Make images that the folder holds anew.")]


def reno(
    prompts: Prompts = None,
    file: File = None,
    count: Count = None,
    model: Model = None,
    recipe: RecipeOption = None,
    reward: Rewards = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Updates of each image's noise.")] = None,
    seeds: Seeds = None,
    seed: Seed = 0,
    batch: Batch = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", callback=finite)] = None,
    budget: Annotated[str | None, typer.Option(help="Time for each batch of images, such as 20s or 2m.")] = None,
    oracle: Annotated[
        str | None, typer.Option(help="Optimise by ranks alone: reward, reward:NAME, or a program that orders files.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also best-of at equal cost, and the table.")] = False,
    path: Annotated[bool | None, typer.Option(help="Draw the path as GIF and grid; default: of few images.")] = None,
    render_with: Annotated[str | None, typer.Option(help="Also draw the noise with this model.")] = None,
    output: Output = Path("reno"),
    again: Again = False,
    change: Change = None,
) -> None:
    """Make images better by optimising their noise for rewards (ReNO)."""
    changes: dict[str, Any] = {"train.num_updates": iterations, "optim.lr": lr, "objective.num_seeds": seeds}
    changes |= {"train.batch_size": batch, "train.seed": seed, "objective.budget": seconds(budget)}
    if oracle is not None:
        named = judge(oracle)
        if named and reward:
            raise UserError(f"--oracle {oracle}: names a reward, and so does --reward. Give one of the two.")
        reward = [named] if named else reward
        changes["objective.ranks.oracle"] = "reward" if named is not None else oracle
        changes["objective.num_starts"] = 1
    loaded = assembled(recipe, model, prompts, file, count, reward, changes, change)
    from align.noise import report as reno_report
    from align.noise import table as reno_table
    from align.noise.files import LINES
    from align.noise.redraw import latents_of, same_latents
    from align.noise.run import Session

    other = latents_of(render_with, "--render-with") if render_with else ()
    session = Session(loaded, output, _say)
    if render_with:
        own = session.studio.model.latent_shape(loaded.sampling.image_size)
        same_latents(render_with, other, own, "--render-with")
    few = len(session.rows()) <= FEW
    outcomes = _told(session, output, frames=few if path is None else path, compare=compare, again=again)
    if session.accelerator.is_main_process and outcomes:
        _say_best(output, outcomes)
        typer.echo(f"report  {reno_report.write(output, outcomes)}")
    if compare and session.accelerator.is_main_process and not session.interrupted:
        table = reno_table.write(output, outcomes)
        none = f"no table: it compares two images or more. Best-of's scores stand in {output / LINES}"
        typer.echo(table.read_text(encoding="utf-8") if table else none)
    if render_with is not None and session.accelerator.is_main_process:
        for outcome in outcomes:
            redraw((output / outcome.file).with_suffix(".safetensors"), model=render_with)
    if session.interrupted:
        raise typer.Exit(130 if session.interrupted == "SIGINT" else 143)


def best_of(
    prompts: Prompts = None,
    file: File = None,
    count: Count = None,
    model: Model = None,
    recipe: RecipeOption = None,
    reward: Rewards = None,
    n: Annotated[int | None, typer.Option("-n", min=1, help="Random noises an image; default 16.")] = None,
    budget: Annotated[str | None, typer.Option(help="Instead of -n: time for each batch of images.")] = None,
    seeds: Seeds = None,
    seed: Seed = 0,
    batch: Batch = None,
    output: Output = Path("best-of"),
    again: Again = False,
    change: Change = None,
) -> None:
    """Keep the best of n random noises by the same rewards: what ReNO has to beat."""
    changes = {"objective.num_seeds": seeds, "train.batch_size": batch, "train.seed": seed}
    loaded = assembled(recipe, model, prompts, file, count, reward, changes, change)
    from align.noise.run import Session

    time = seconds(budget)
    extent = {"count": None if time else n or 16, "seconds": time}
    session = Session(loaded, output, _say)
    outcomes = _told(session, output, method="best-of", again=again, **extent)
    if session.accelerator.is_main_process:
        _say_best(output, outcomes)


def redraw(
    noise: Annotated[Path, typer.Argument(help="A .safetensors that align reno has written.", callback=home)],
    model: Annotated[str | None, typer.Option(help="Another model, for the same latents.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The image's file.", callback=home)] = None,
    change: Change = None,
) -> None:
    """Draw an image again from its noise: the same model gives the same image, another one its own of it."""
    from align.noise.run import drawn_again

    recipe, chosen = recipe_of(model) if model else (None, {})
    typer.echo(drawn_again(noise, recipe, chosen, output, change or ()))


def assembled(
    recipe: str | None,
    model: str | None,
    prompts: list[str] | None,
    file: str | None,
    count: int | None,
    rewards: list[str] | None,
    changes: dict[str, Any],
    change: list[str] | None,
) -> Any:
    """The recipe that a command line means; what it does not say stays as the recipe has it."""
    from align.config import load_recipe
    from align.data._prompt_files import names_a_source

    prompts, change = settings_among(prompts, change)
    if not prompts and file is None:
        raise UserError('there is no prompt. Write one, as in `align reno "a red circle"`, or give --prompts FILE.')
    if prompts and file is not None:
        raise UserError("prompts are given twice, as arguments and by --prompts. Give one of the two.")
    for word in prompts or ():
        if word in recipes.names() or word.endswith((".yaml", ".yml")):
            raise UserError(f"{word}: is a recipe, and what stands here are prompts. Give it as --recipe {word}.")
    if prompts and len(prompts) == 1 and names_a_source(prompts[0]):
        prompts, file = None, prompts[0]
    name, chosen = recipe_of(model) if model else (RECIPE, {})
    said: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    said |= {"data.prompts": list(prompts) if prompts else file, "data.count": None if prompts else count}
    said |= chosen
    if rewards:
        said["rewards"] = weighted(rewards, load_recipe(recipe or name, on_disk=False).dump()["rewards"])
    # Two passes: --set speaks of what the options above have made.
    return load_recipe(load_recipe(recipe or name, said, on_disk=False), change)


def judge(oracle: str) -> str | None:
    """The reward that `--oracle` names: "" for the recipe's own, None where it is a program, which is then there."""
    head, mark, name = oracle.partition(":")
    if head == "reward" and (name or not mark):
        return name
    if not shutil.which(oracle.split(" ")[0]):
        from align.noise.oracle import program

        program(oracle)
    return None


def weighted(said: list[str], known: dict[str, Any]) -> dict[str, Any]:
    """["clip=0.01", "aesthetic"] -> the rewards block; a label of the recipe keeps its other settings."""
    block: dict[str, Any] = {}
    for text in said:
        name, sign, weight = text.partition("=")
        try:
            value = float(weight) if sign else 1.0
            if not math.isfinite(value):
                raise ValueError
        except ValueError:
            raise UserError(f"--reward {text}: {weight!r} is no number. Write name=weight, as in clip=0.01.") from None
        block[name] = {**known.get(name, {}), "weight": value}
    return block


def seconds(text: str | None) -> float | None:
    """ "20s", "2m", "20" -> seconds."""
    if text is None:
        return None
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("s", "m") else (text, "s")
    try:
        value = float(number) * (60 if unit == "m" else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise UserError(f"--budget {text}: is no time. Write it as 20s or 2m.")
    return value


def _told(session: Any, output: Path, **options: Any) -> list[Any]:
    """Runs a session and says of each image what became of it."""
    outcomes = []
    for outcome in session.run(**options):
        outcomes.append(outcome)
        if session.accelerator.is_main_process:
            before, after = outcome.start["total"], outcome.best["total"]
            _say(
                f"{output / outcome.file}  reward {before:.3f} -> {after:.3f} ({after - before:+z.3f}), "
                f"{outcome.told()}, {outcome.seconds:.1f} s"
            )
    return outcomes


def _say_best(output: Path, outcomes: list[Any]) -> None:
    """Of a prompt with several images, which one the rewards like best."""
    images: dict[str, list[Any]] = {}
    for outcome in outcomes:
        images.setdefault(outcome.prompt, []).append(outcome)
    for prompt, made in images.items():
        if len(made) > 1:
            best = max(made, key=lambda outcome: outcome.best["total"])
            _say(f"best of {len(made)} of {prompt!r}: {output / best.file}  reward {best.best['total']:.3f}")


def _say(text: str) -> None:
    typer.echo(text)
