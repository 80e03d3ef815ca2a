"""The pages of docs/reference/: every block of a recipe, component, recipe and command, as the code says it."""

import ast
import importlib.util
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer.main
import yaml

from align.commands.app import app
from align.commands.rewards import default_settings
from align.config import ALWAYS, Recipe
from align.models._load import CheckpointConfig
from align.objectives._preference import PreferenceConfig
from align.objectives._reward import RewardObjectiveConfig
from align.registry import DATA, HOOKS, MODELS, OBJECTIVES, REWARDS, Registry, RewardConfig
from align.shapes.cli import app as shapes_app
from align.training import optim
from rewards._numerals import counted
from scripts.handbook.settings import blocks, cell, settings, shared, table, takes

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = "Written by `python scripts/reference.py` from the code; not edited by hand."


def pages() -> dict[str, str]:
    """{file name: text}."""
    found = {
        "recipe.md": recipe_page(),
        "recipes.md": recipes_page(),
        "models.md": component_page("Models", MODELS, MODELS_HEAD, {"What every family takes": CheckpointConfig}),
        "objectives.md": component_page("Objectives", OBJECTIVES, OBJECTIVES_HEAD, OBJECTIVE_BASES),
        "data.md": component_page("Data", DATA, DATA_HEAD),
        "rewards.md": rewards_page(),
        "hooks.md": component_page("Hooks", HOOKS, HOOKS_HEAD.format(always=" and ".join(f"`{a}`" for a in ALWAYS))),
        "commands.md": commands_page(),
    }
    return {"index.md": INDEX, **found}


INDEX = f"""# Reference

{WRITTEN} On the command line the same is told by
`align components`, `align components NAME`, `align rewards`, `align models` and `align ... --help`.

| page | what stands on it |
|---|---|
| [A recipe](recipe.md) | its blocks, each with all settings: `sampling`, `adapter`, `optim`, `train`, `evaluate`, ... |
| [Recipes](recipes.md) | all that can be named, by model and method |
| [Models](models.md) | `model`: the families and what was published of them |
| [Objectives](objectives.md) | `objective`: the methods |
| [Data](data.md) | `data`: prompts, pairs, captioned pictures, steps |
| [Rewards](rewards.md) | `rewards`: what each measures, its range, its licence, how it is gamed |
| [Hooks](hooks.md) | `hooks`: what happens beside the loop, and how one is switched off |
| [Commands](commands.md) | `align ...`, every command with its options |
"""

MODELS_HEAD = """`model` in a recipe. How a family is used, what it needs and which recipes there are:
[Models](../models/index.md)."""

OBJECTIVES_HEAD = """`objective` in a recipe, by name (`objective: draft`) or with settings
(`objective: {name: draft, kl: 0.1}`). What each does: [Methods](../methods/index.md)."""

OBJECTIVE_BASES = {
    "What those take that differentiate a reward": RewardObjectiveConfig,
    "What those take that compare the images of a pair": PreferenceConfig,
}

DATA_HEAD = """`data` in a recipe: what an update is made of. Prompts are a list, a text file with one a line, or a set:
`shapes:train`, `scenes:train`, `animals:train`, each also with `select` and `report`. Pairs:
[Preference pairs](../howto/pairs.md)."""

HOOKS_HEAD = """`hooks` in a recipe, each under a label; a label that is a hook's name needs no `name`. They act in the
order in which they stand; {always} are always there, at the end.

A hook is switched off by `false`, from the command line or in the recipe; `null` is not that: it takes the defaults.

```bash
align train draft/shapes hooks.guard=false hooks.progress=false --dry-run
```

What the guard does with its settings: [the guard](../howto/guard.md)."""


def recipe_page() -> str:
    rows, sections = [], []
    for name, field in Recipe.model_fields.items():
        block = None if name in OWN_PAGE else next(blocks(field.annotation), None)
        target = OWN_PAGE.get(name) or (f"#{name}" if block else "")
        linked = f"[`{name}`]({target})" if target else f"`{name}`"
        needed = "**required**" if field.is_required() else ""
        rows.append((linked, cell(takes(field)), needed, cell(field.description or "")))
        if block:
            sections += [f"## {name}", "", cell(block.__doc__ or ""), ""]
            sections += formula(optim) if name == "optim" else []
            sections += settings(block, name)
    head = ["# A recipe", "", WRITTEN, "", RECIPE_HEAD, "", *table(("block", "takes", "", ""), rows)]
    return text([*head, *sections])


OWN_PAGE = {
    "model": "models.md",
    "objective": "objectives.md",
    "data": "data.md",
    "rewards": "rewards.md",
    "hooks": "hooks.md",
}

RECIPE_HEAD = """A YAML file of choices, or a name from [Recipes](recipes.md) and changes to it:
`align train draft/shapes optim.lr=1e-3`. What is not said has the default below; a wrong key is refused with the line
it stands on. `align schema -o recipe.json` writes the same as JSON Schema, for editors."""


def formula(module: Any) -> list[str]:
    """The indented lines of a module's first sentences, and the paragraph below them."""
    paragraphs = (ast.get_docstring(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))) or "").split("\n\n")
    lines = [line for line in paragraphs[1].splitlines() if line.startswith("    ")]
    return ["```text", *(line.strip() for line in lines), "```", "", cell(paragraphs[2]), ""]


def component_page(title: str, registry: Registry, head: str, bases: dict[str, type] | None = None) -> str:
    lines = [f"# {title}", "", WRITTEN, "", head, ""]
    lines += table(("name", ""), [(f"[`{n}`](#{n})", cell(sentence(m))) for n, m in registry.modules().items()])
    for heading, base in (bases or {}).items():
        lines += [f"## {heading}", "", *settings(base, title.lower().rstrip("s"))]
    for name in registry.names():
        lines += [f"## {name}", "", *component(registry, name, title.lower().rstrip("s"), bases or {})]
    return text(lines)


def component(registry: Registry, name: str, key: str, bases: dict[str, type]) -> Iterable[str]:
    config = registry.config_class(name)
    yield from (cell(sentence(registry.modules()[name])), "")
    known: list[str] = []
    for heading, base in bases.items():
        if issubclass(config, base):
            known += shared(config, base)
            yield from (f"Also [{heading[0].lower()}{heading[1:]}](#{slug(heading)}).", "")
    if rows := settings(config, key, known):
        yield from rows
    elif not known:
        yield from ("Nothing to set.", "")
    for published in getattr(registry.get(name), "published", ()):
        s = published.sampling
        how = f"{counted(s['num_steps'], 'step')} of `{s['step_rule']}`, guidance {s['guidance_scale']:g}"
        yield f"- `{published.checkpoint}` ({published.licence}): {how}"
    yield ""


def rewards_page() -> str:
    lines = ["# Rewards", "", WRITTEN, "", REWARDS_HEAD, ""]
    rows = []
    for name in REWARDS.names():
        card = default_settings(name).card
        rows.append((f"`{name}`", card.measures, card.range, card.hacking, f"`{card.partner}`"))
    lines += table(("reward", "measures", "range", "hacked images", "watch"), rows)
    lines += ["## What every reward takes", "", *settings(RewardConfig, "rewards.LABEL")]
    for name in REWARDS.names():
        config = default_settings(name)
        gradient = "a gradient to the pixels" if config.has_gradient() else "no gradient: it watches"
        said = f"{config.card.size}; {gradient}; licence: {config.licence_text()}."
        lines += [f"## {name}", "", f"{cell(sentence(REWARDS.modules()[name]))}", "", f"{cell(said)}", ""]
        lines += settings(type(config), "rewards.LABEL", shared(type(config), RewardConfig))
    return text(lines)


REWARDS_HEAD = """`rewards` in a recipe, each under a label, and wherever rewards watch: `hooks.guard.rewards`,
`hooks.panel.rewards`, `evaluate.rewards`. Which to train on and what to watch beside it:
[Rewards](../howto/rewards.md). Licences and gradients are those of the default settings."""


def recipes_page() -> str:
    said = "`align train NAME` runs one, `align reno --recipe NAME` those of `reno`."
    lines = ["# Recipes", "", WRITTEN, "", said, ""]
    cells: dict[str, dict[str, list[str]]] = {}
    rows = []
    for path in sorted((ROOT / "recipes").glob("*/*.yaml")):
        if path.parent.name == "accelerate":
            continue
        name = f"{path.parent.name}/{path.stem}"
        source = path.read_text(encoding="utf-8")
        tree = yaml.safe_load(source)
        model = tree["model"]
        family = "the embedded world" if "embedded:" in str(model.get("checkpoint")) else f"`{model['name']}`"
        cells.setdefault(family, {}).setdefault(path.parent.name, []).append(name)
        train = tree.get("train", {})
        size = f"{train.get('num_updates', 100)} x {train.get('batch_size', 16)}"
        rows.append((f"`{name}`", family, size, cell(source.partition("\n")[0].removeprefix("# "))))
    methods = list(dict.fromkeys(method for of in cells.values() for method in of))
    families = sorted(cells, key=lambda f: (-sum(map(len, cells[f].values())), f))
    matrix = [
        (family, *(", ".join(f"`{n.partition('/')[2]}`" for n in cells[family].get(m, ())) for m in methods))
        for family in families
    ]
    lines += table(("model", *(f"`{m}`" for m in methods)), matrix)
    rest = [f"`{n}`" for n in MODELS.names() if f"`{n}`" not in cells]
    if rest:
        lines += [f"No recipe names {', '.join(rest)} yet: take one of another family and set its `model`.", ""]
    lines += ["## Each", "", *table(("recipe", "model", "updates x rows", ""), rows)]
    return text(lines)


def commands_page() -> str:
    lines = ["# Commands", "", WRITTEN, "", COMMANDS_HEAD, ""]
    group: Any = typer.main.get_command(app)
    rows = [(f"[`align {name}`](#align-{name})", cell(one.help or "")) for name, one in group.commands.items()]
    lines += table(("command", ""), rows)
    for name, command in group.commands.items():
        lines += [f"## align {name}", "", cell(command.help or ""), ""]
        if name == "shapes":
            inner: Any = typer.main.get_command(shapes_app)
            for part, below in inner.commands.items():
                lines += [f"`align shapes {part}`: {cell(below.help or '')}", "", *options(below)]
        else:
            lines += options(command)
    return text(lines)


COMMANDS_HEAD = """A mistake is said in one line and ends with exit code 2; Ctrl-C ends with 130, and the same command
goes on. `ALIGN_TRACEBACK=1` shows where an error was raised."""


def options(command: Any) -> list[str]:
    rows = []
    for one in command.params:
        if one.param_type_name == "argument":
            shown = f"`{one.name.upper()}`" + (" ..." if one.nargs == -1 else "")
        else:
            shown = ", ".join(f"`{word}`" for word in [*one.opts, *one.secondary_opts])
        plain = one.default is None or one.default is False or callable(one.default) or one.default == ()
        standard = "**required**" if one.required else "" if plain else f"`{one.default}`"
        rows.append((shown, standard, cell(getattr(one, "help", None) or "")))
    return table(("", "default", ""), rows) if rows else []


def sentence(module: str) -> str:
    """The first sentence of a module's docstring, read without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return (ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or "").split("\n\n")[0]


def slug(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def text(lines: Sequence[str]) -> str:
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"
