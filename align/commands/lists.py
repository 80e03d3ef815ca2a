"""`align recipes`, `rewards`, `models`, `components` and `schema`: what a recipe can name, and the form of one."""

import ast
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from align.commands.values import home
from align.errors import UserError
from align.files.output import check_file, write
from align.registry import DATA, HOOKS, MODELS, OBJECTIVES, REWARDS, Registry


def recipes(
    method: Annotated[str | None, typer.Argument(help="Only those of this method.")] = None,
    model: Annotated[str | None, typer.Option(help="Only those for this folder, Hub id or family.")] = None,
) -> None:
    """List the recipes that can be named."""
    from align.commands.fitting import first_comment, fitting, is_family
    from align.recipes import names

    known, start = names(), f"{method}/" if method else ""
    if not any(name.startswith(start) for name in known):
        methods = sorted({name.partition("/")[0] for name in known})
        close = difflib.get_close_matches(str(method), methods, n=1)
        families = difflib.get_close_matches(str(method), MODELS.names(), n=1)
        family = families[0] if families else method
        said = f" Did you mean {close[0]}?" if close else f" For a family: align recipes --model {family}."
        raise UserError(f"recipes {method}: no recipe is of such a method.{said} Known are {', '.join(methods)}.")
    if model is None:
        _table({name: first_comment(path) for name, path in known.items() if name.startswith(start)})
        return
    found = [fit for fit in fitting(model) if fit.name.startswith(start)]
    if not found:
        made, way = "no recipe is made", f"align init --model {model} writes one"
        if method:
            made, way = f"no recipe of {method} is made", f"set the model of one that align recipes {method} lists"
        typer.echo(f"{made} for the family of {model} yet: {way}")
    _table({fit.name: fit.comment for fit in found})
    if not is_family(model) and any(not fit.same for fit in found):
        word = "the others take it" if any(fit.same for fit in found) else "they take it"
        typer.echo(f"{word} with model.checkpoint={model}")


def rewards(name: Annotated[str | None, typer.Argument(help="Show the settings of this one.")] = None) -> None:
    """List the rewards: gradient, size, licence, range; or show all of one."""
    from align.commands.rewards import described, overview

    if name is None:
        typer.echo("\n".join(overview()))
        return
    _describe({"rewards": REWARDS}, name)
    typer.echo("\n".join(described(name)))


def models(
    name: Annotated[str | None, typer.Argument(help="Show the settings of this one.")] = None,
    sizes: Annotated[bool, typer.Option("--sizes", help="Parameters and FLOPs at real size.")] = False,
) -> None:
    """List the model families and their published checkpoints, or show one family's settings."""
    from align.commands import models as models_cli

    if sizes:
        for line in models_cli.sizes():
            typer.echo(line)
    elif name is None:
        typer.echo(models_cli.listing())
    else:
        _describe({"models": MODELS}, name)
        typer.echo(models_cli.details(name))


def components(name: Annotated[str | None, typer.Argument(help="Show the settings of this one.")] = None) -> None:
    """List all that a recipe can name, or show the settings of one."""
    from align import config

    blocks = {"sampling": config.SamplingConfig, "adapter": config.AdapterConfig, "optim": config.OptimConfig}
    blocks |= {"train": config.TrainConfig, "evaluate": config.EvaluateConfig}
    if name in blocks:
        _show(f"{name}: {(blocks[name].__doc__ or '').strip()}", blocks[name])
        return
    kinds = {"models": MODELS, "objectives": OBJECTIVES, "rewards": REWARDS, "data": DATA, "hooks": HOOKS}
    _describe(kinds, name, more=blocks)


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it here, not to the screen.", callback=home)
    ] = None,
) -> None:
    """Print the JSON Schema of a recipe, from which an editor completes and checks."""
    import json

    from align.config import json_schema

    if output is not None:
        output = check_file(output, "--output")
    text = json.dumps(json_schema(), indent=2)
    if output is None:
        typer.echo(text)
        return
    write(output, text + "\n", "--output")


def _table(rows: dict[str, str]) -> None:
    width = max(map(len, rows), default=0)
    for name, text in rows.items():
        typer.echo(f"{name:<{width}}  {text}".rstrip())


def _describe(kinds: dict[str, Registry], name: str | None, more: Iterable[str] = ()) -> None:
    if name is not None:
        for registry in kinds.values():
            if ":" in name or name in registry.names():
                _settings(registry, name)
                return
        known = [one for registry in kinds.values() for one in registry.names()]
        if len(kinds) > 1:
            close = difflib.get_close_matches(name, [*known, *more], n=1)
            meant = f' Did you mean "{close[0]}"?' if close else ""
            raise UserError(f'there is no component "{name}".{meant} `align components` lists them.')
        next(iter(kinds.values())).get(name)  # says what is known
    for kind, registry in kinds.items():
        if len(kinds) > 1:
            typer.echo(f"{kind}:")
        _table({name: _first_line(path) for name, path in registry.modules().items()})


def _settings(registry: Registry, name: str) -> None:
    component = registry.get(name)
    _show(f"{name}: {(component.__doc__ or '').strip()}", registry.config_class(name))


def _show(title: str, config: Any) -> None:
    typer.echo(title)
    rows = {}
    for key, field in config.model_fields.items():
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        rows[f"  {key}"] = f"({default}) {' '.join((field.description or '').split())}"
    _table(rows)


def _first_line(module: str) -> str:
    """The first sentence of a module's docstring, read without importing it."""
    import importlib.util

    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
