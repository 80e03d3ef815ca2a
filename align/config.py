"""A recipe: YAML plus `a.b=c` overrides -> one frozen tree of component configs, with every problem said at once."""

import copy
import difflib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, SerializeAsAny, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from align import presets, recipes
from align.errors import UserError
from align.files import code, places
from align.files.schema import shared
from align.policy import adapter_file
from align.policy.lora import AdapterConfig
from align.policy.mix import locate
from align.registry import (
    DATA,
    EMBEDDED,
    HOOKS,
    MODELS,
    OBJECTIVES,
    ComponentConfig,
    Labelled,
    LabelledRewards,
    RewardConfig,
    resolve_embedded,
)
from align.sampling import SamplingConfig
from align.sampling.negative import NegativeConfig
from align.source import OTHERS_SAY, KeyPath, Source
from align.training.evaluate import EvaluateConfig
from align.training.optim import OptimConfig
from align.training.trainer import TrainConfig
from rewards._card import UNSTATED, is_open
from rewards._combine import CombineConfig
from rewards._config import wants_text

ALWAYS = ("progress", "metrics")
"""Hooks of every run, after those that add to the metrics; `hooks.progress=false` leaves one out."""


def _must_say(hook: Any) -> bool:
    """Whether a hook has settings without a default, so that null can only mean to leave it out."""
    fields = HOOKS.config_class(hook).model_fields.values() if hook in HOOKS.names() else ()
    return any(field.is_required() for field in fields)


def _with_always(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value  # the next validator says so
    given = {label: {} if settings is True else settings for label, settings in value.items()}
    if without := [label for label, settings in given.items() if settings is None and _must_say(label)]:
        raise ValueError(f"{without[0]} is null. To leave it out write {without[0]}: false (hooks.{without[0]}=false)")
    ordered = [label for label in given if label not in ALWAYS] + list(ALWAYS)
    return {label: given.get(label) for label in ordered if given.get(label) is not False}


class Recipe(ComponentConfig):
    """Everything that a run's result depends on."""

    model: Annotated[SerializeAsAny[ComponentConfig], MODELS]
    """The diffusion model that is aligned."""
    objective: Annotated[SerializeAsAny[ComponentConfig], OBJECTIVES]
    """The method."""
    data: Annotated[SerializeAsAny[ComponentConfig], DATA]
    """What an update is made of: prompts, or preference pairs."""
    rewards: LabelledRewards = Field(default_factory=dict)
    """{label: reward}, summed by their weights; a label is the reward's name unless `name` says otherwise."""
    combine: CombineConfig = CombineConfig()
    """How several rewards are normalised, and how their gradients are put together."""
    sampling: SamplingConfig = SamplingConfig()
    """How images are drawn, in training and in the hooks."""
    adapter: AdapterConfig = AdapterConfig()
    """What is trained."""
    optim: OptimConfig = OptimConfig()
    """The optimiser and the learning rate."""
    train: TrainConfig = TrainConfig()
    """How long, how large, how precise."""
    hooks: Annotated[
        dict[str, Annotated[SerializeAsAny[ComponentConfig], HOOKS]],
        Labelled(HOOKS),
        BeforeValidator(_with_always),
    ] = Field(default_factory=dict, validate_default=True)
    """{label: hook}: what happens beside the loop, in this order; progress and metrics are always there, at the end."""
    evaluate: EvaluateConfig | None = None
    """On what the result is reported, before and after; default: it is not."""
    licences: Literal["any", "commercial"] = "any"
    """`commercial`: refuse rewards whose weights or code are not known to allow commercial use."""
    output: str = Field(default="runs/run", min_length=1)
    """The run's folder; a named recipe writes to runs/NAME."""

    def dump(self) -> dict[str, Any]:
        """The whole tree as plain JSON-able values: `load_recipe(recipe.dump()) == recipe`."""
        tree = self.model_dump(mode="json")
        tree["hooks"] |= {label: False for label in ALWAYS if label not in self.hooks}
        return tree

    def yaml(self) -> str:
        """The whole tree as the text of a recipe file."""
        return as_yaml(self.dump())


def as_yaml(tree: Mapping[str, Any]) -> str:
    """The text of a recipe file."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def load_recipe(
    source: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    on_disk: bool = True,
) -> Recipe:
    """The recipe at a path, under a name, or in a mapping, with overrides ("optim.lr=1e-4", or {"optim.lr": 1e-4}).

    With `on_disk` false, settings are not held against the rest of the recipe and the machine (a finished run is read
    although its prompts may be gone). Raises UserError with one line a problem, all of them.
    """
    if isinstance(source, Recipe):
        source = source.dump()
    if isinstance(source, Mapping):
        said = Source(copy.deepcopy(dict(source)), "recipe")
    else:
        path = recipes.find(source)
        said = Source.read(path)
        said.tree = code.located(said.tree, path)
        said.tree.setdefault("output", f"runs/{_run_name(path)}")
        if (folder := recipes.run_folder(source, path)) is not None:
            said.tree = places.whole({**said.tree, "output": str(folder)})
    presets.spelled_out(said, overrides)
    recipe, parts, problems = _validated(said, trains=on_disk)
    if on_disk:
        problems += _conflicts(said.tree, parts)
    if problems or recipe is None:
        ordered = sorted(dict.fromkeys(problems), key=lambda problem: [str(key) for key in problem[0]])
        raise UserError("\n".join(_line(said, path, text) for path, text in ordered))
    return recipe


def _line(said: Source, path: KeyPath, text: str) -> str:
    key = ".".join(map(str, path)) or "recipe"
    known = path and str(path[-1]) in OTHERS_SAY and text.startswith("unknown key.")
    if (known or text.startswith("unknown key. Known")) and (other := elsewhere(str(path[-1]), str(path[0]))):
        text = f"unknown key. Did you mean {other}? Known here{text.partition('Known here')[2]}"
    return f"{said.origin(path)}: {key}: {text.removeprefix(f'{key}=')}"


def elsewhere(word: str, block: str = "") -> str:
    """The key of another block, or by another trainer's name, that a word may have been meant for: sampling.last_k."""
    if word in OTHERS_SAY:
        return OTHERS_SAY[word]
    blocks = {"sampling": SamplingConfig, "adapter": AdapterConfig, "optim": OptimConfig, "train": TrainConfig}
    known = {key: f"{name}.{key}" for name, kind in blocks.items() if name != block for key in kind.model_fields}
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return known[close[0]] if close else ""


def json_schema() -> dict[str, Any]:
    """JSON Schema of a recipe file, for editors that complete and check while one types."""
    schema = shared(Recipe.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "diffalign recipe", **schema}


def _run_name(path: Path) -> str:
    folder = path.parent.name
    if path.name == "recipe.yaml":  # of a pulled adapter, which names no folder of its own
        return folder or path.stem
    return f"{folder}-{path.stem}" if path.parent.parent.name in ("recipes", "_recipes") else path.stem


def _validated(said: Source, *, trains: bool) -> tuple[Recipe | None, dict[str, Any], list[tuple[KeyPath, str]]]:
    """The recipe, or the blocks of it that are valid by themselves (a mistake in one must not hide what is wrong
    between the others) and the problems of the rest."""
    tree, context = said.tree, {"trains": trains}
    try:
        recipe = Recipe.model_validate(tree, context=context)
        return recipe, dict(recipe), []
    except ValidationError as error:
        if said.respell(entry["loc"] for entry in error.errors() if wants_text(entry)):
            return _validated(said, trains=trains)
        problems = [(entry["loc"], _message(entry)) for entry in error.errors()]
    parts: dict[str, Any] = {}
    for name, field in Recipe.model_fields.items():
        if name in tree or not field.is_required():
            block: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            try:
                parts[name] = TypeAdapter(block).validate_python(
                    tree.get(name, field.get_default(call_default_factory=True)), context=context
                )
            except ValidationError:
                continue  # said above
    return None, parts, problems


def _message(error: ErrorDetails) -> str:
    return str(error.get("ctx", {}).get("error", error["msg"]))


def _conflicts(tree: Mapping[str, Any], parts: Mapping[str, Any]) -> list[tuple[KeyPath, str]]:
    found = [*_embedded(tree), *_gradient(parts), *_licences(parts), *_output(parts), *_chooser(parts)]
    found += _negative(parts)
    for prefix, config in _configs(parts):
        for path, text in config.conflicts(parts):
            found.append((f"{prefix}{path}" if path.startswith(".") else path, text))
    return [(tuple(path.split(".")), text) for path, text in found]


def _configs(value: Any, path: str = "") -> Iterator[tuple[str, ComponentConfig]]:
    """Every component of the tree, at any depth, with its key path."""
    if isinstance(value, ComponentConfig):
        yield path, value
        value = dict(value)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _configs(inner, f"{path}.{key}" if path else str(key))


def _embedded(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str) and value.startswith(EMBEDDED):
        try:
            resolve_embedded(value)
        except UserError as error:
            yield path, str(error)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _embedded(inner, f"{path}.{key}" if path else str(key))


def _output(parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Whether the run's folder can be made, tried in the folder that is there already; leaves nothing behind."""
    if "output" not in parts:
        return
    path = Path(parts["output"]).expanduser().absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    try:
        os.rmdir(tempfile.mkdtemp(dir=there))
    except OSError as error:
        yield "output", f"{parts['output']} cannot be written: {there}: {error.strerror}. Choose another folder."


def _chooser(parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """One hook may pick the adapter that is kept: two would each say that it is theirs."""
    choosers = [label for label, hook in (parts.get("hooks") or {}).items() if getattr(hook, "chooses", False)]
    for label in choosers[1:]:
        key = f"hooks.{label}" if parts["hooks"][label].name == "guard" else f"hooks.{label}.best"
        yield (
            key,
            f"would choose the adapter that is kept, and hooks.{choosers[0]} chooses it already. Remove `best` of a "
            f"panel, or switch one of the two off, such as hooks.{choosers[0]}=false.",
        )


def _negative(parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Adapters that guidance goes away from, and that are not there."""
    for path, config in _configs(parts):
        if isinstance(config, NegativeConfig) and config.source is not None:
            try:
                adapter_file.find(config.source) if Path(config.source).expanduser().exists() else locate(config.source)
            except UserError as error:
                yield f"{path}.source", str(error)


def _licences(parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rewards, wherever they stand in the recipe, that `licences: commercial` refuses."""
    if parts.get("licences") != "commercial":
        return
    for path, config in _configs(parts):
        if isinstance(config, RewardConfig):
            for part, licence in config.licences().items():
                if not is_open(licence):
                    yield (
                        path,
                        f"the licence of {part} is {licence}, which is not known to allow commercial use, and the "
                        "recipe says licences: commercial. Choose another reward"
                        + (", or say what you know: licence: MIT." if licence == UNSTATED else "."),
                    )


def _gradient(parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """An objective, or a source, that follows the rewards' gradient says so: `needs_gradient` on its config."""
    rewards = parts.get("rewards")
    askers = [parts[key] for key in ("objective", "data") if getattr(parts.get(key), "needs_gradient", False)]
    if not askers or rewards is None:
        return
    name = askers[0].name
    if not rewards:
        yield "rewards", f"are missing: {name} maximises one. Add it, such as `rewards: {{clip: {{}}}}`."
    for label, reward in rewards.items():
        if not reward.has_gradient():
            yield (
                f"rewards.{label}",
                f"is not differentiable: {name} sends the gradient of every reward into the model, and this "
                "one has none. Watch it in hooks.panel.rewards instead, and train on another, such as clip.",
            )
