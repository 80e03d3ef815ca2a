"""From what a command line names to what is drawn and judged: the recipe behind the arms, prompts, rewards, seed."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.config import Recipe, load_recipe
from align.data._readable import readers, refuse
from align.data.prompts import load_prompts, words
from align.errors import UserError
from align.evaluation.arms import BASE, Cast, cast
from align.evaluation.benchmarks import Item
from align.evaluation.branches import of_recipe
from align.evaluation.prompts import load, shares
from align.evaluation.questions import Examination, examination
from align.evaluation.score_inputs import reward_configs
from align.noise.recipe import recipe_of
from align.policy.adapter_file import drawn_by, find
from align.registry import EMBEDDED, RewardConfig
from rewards._numerals import counted

ANY = "reno/any"  # what recipe_of says of a model that no recipe was made for
MODEL = ("checkpoint", "revision", "network", "base_adapter")
"""What tells one base from another: its precision and what saves memory do not."""


@dataclass(frozen=True)
class Plan:
    """Everything that the numbers of an evaluation depend on."""

    recipe: Recipe
    """Its model, sampling and seed; for arms that choose the noise also its objective, rewards and optim."""
    cast: Cast
    prompts: str
    """What they are called."""
    items: list[Item]
    num_images: int
    batch_size: int
    rewards: dict[str, RewardConfig]
    """{label: what judges}."""
    trained_on: list[str]
    """The labels among `rewards` that some arm maximises: its adapter's training, or its choice of noise."""
    exam: Examination | None = None
    """The benchmark whose questions are asked of the images; the first of `rewards` answers."""
    seen: int = 0
    """How many of `items` an adapter was trained on, by their words."""


def plan(
    systems: Sequence[str],
    *,
    recipe: str | None = None,
    model: str | None = None,
    prompts: str | list[str] | None = None,
    count: int | None = None,
    num_images: int = 2,
    rewards: Sequence[str] = (),
    changes: Sequence[str] = (),
    seed: int | None = None,
    against: str = BASE,
    strengths: Sequence[float] = (),
    mix: Sequence[float] = (),
    batch_size: int = 16,
    benchmark: str | None = None,
) -> Plan:
    """Puts an evaluation together; what is not said is taken from the recipe behind the arms."""
    if not systems:
        raise UserError("what is to be evaluated? Name a run's folder, an adapter, best-of:8, reno:20, or base.")
    if benchmark is not None and prompts is not None:
        raise UserError(f"--prompts {prompts}: a benchmark has its own. Leave out --prompts, or --benchmark.")
    exam = None if benchmark is None else _shortened(examination(benchmark), count)
    sweeps: dict[str, Any] = {"against": against, "strengths": strengths, "mix": mix}
    chosen = cast(systems, **sweeps)
    everyone = [chosen.baseline, *chosen.arms]
    noisy = any(arm.noise for arm in everyone)
    preset: list[str] = []
    if exam is not None and not rewards:
        rewards = [str(exam.judge["name"])]
        preset = [f"{rewards[0]}.{key}={value}" for key, value in exam.judge.items() if key != "name"]
    of_rewards = preset + [c for c in changes if c.partition(".")[0] in {name.partition("=")[0] for name in rewards}]
    said: dict[str, Any] = {} if seed is None else {"train.seed": seed}
    if model is not None:
        said |= recipe_of(model)[1]
    if recipe is not None or model is not None:
        said |= _students(chosen)
    loaded = load_recipe(_behind(chosen, recipe, model, noisy), said, on_disk=False)
    loaded = load_recipe(loaded, [c for c in changes if c not in of_rewards], on_disk=False)
    if any(arm.noise == "reno" for arm in everyone) and getattr(loaded.objective, "trains", "adapter") != "noise":
        loaded = _optimising(loaded)
    chosen = cast(systems, **sweeps, branched=of_recipe(loaded))
    if noisy and not loaded.rewards:
        raise UserError(
            "best-of and reno choose by rewards, and the recipe has none. Give --recipe reno/any, or yours."
        )
    trainings = [loaded, *(load_recipe(p.recipe, on_disk=False) for p in chosen.adapters.values() if p.recipe)]
    judges = _judges(trainings, rewards, of_rewards)
    choosing = loaded.rewards if noisy else {}
    for label, config in [*judges.items(), *choosing.items()]:  # its file, a reference of its: before one is drawn
        for key, text in config.conflicts({}):
            raise UserError(f"--reward {label}{key}: {text}")
    maximised = [_scored(config) for training in trainings for config in training.rewards.values()]
    if (dynamic := loaded.sampling.how.dynamic) is not None:  # what chose the scales has seen the images
        maximised += [_scored(config) for config in dynamic.rewards.values()]
    trained_on = [label for label, config in judges.items() if _scored(config) in maximised]
    scoring = readers({"sampling": loaded.sampling}, judges, choosing)
    if exam is not None:
        items = [Item(one.prompt, one.category) for one in exam.asked]
        questions, (label, judge) = [q.text for one in exam.asked for q in one.questions], next(iter(judges.items()))
        refuse(f"the prompts of {exam.name}", [item.prompt for item in items], scoring)
        refuse(f"the questions of {exam.name}", questions, readers({}, {label: judge}))
        seen = _seen(trainings[1:], items)
        return Plan(loaded, chosen, exam.name, items, num_images, batch_size, judges, trained_on, exam, seen)
    report = loaded.evaluate
    source = prompts or (report.prompts if report else None)
    if source is None and str(getattr(loaded.model, "checkpoint", "")).startswith(EMBEDDED):
        source = "shapes:report"
    if source is None:
        raise UserError("on which prompts? Give --prompts: a file, a folder, a set, or a benchmark such as parti.")
    if prompts is None and count is None and report is not None:
        count = report.num_prompts
    items = load(source, count)
    named = source if isinstance(source, str) else counted(len(source), "prompt of the recipe")
    refuse(f"--prompts {named}", [item.prompt for item in items], scoring)
    seen = _seen(trainings[1:], items)
    return Plan(loaded, chosen, named, items, num_images, batch_size, judges, trained_on, seen=seen)


def _seen(trainings: Sequence[Recipe], items: Sequence[Item]) -> int:
    """How many of the prompts the trainings had, as far as their recipes name them and they are there."""
    known: set[str] = set()
    for training in trainings:
        data: Any = training.data
        made: Any = getattr(data, "make", None)  # pairs and labels of images that the run draws itself
        for block, number in ((data, "count"), (made, "num_prompts")):
            if (named := getattr(block, "prompts", None)) is not None:
                with suppress(UserError):
                    known |= {*map(words, load_prompts(named, count=getattr(block, number, None), key="data.prompts"))}
    return sum(words(item.prompt) in known for item in items)


def _shortened(exam: Examination, count: int | None) -> Examination:
    """So many of its prompts, the categories in turn."""
    if count is None:
        return exam
    places = shares([Item(one.prompt, one.category) for one in exam.asked], count)
    return replace(exam, asked=[exam.asked[place] for place in places])


def _students(chosen: Cast) -> dict[str, Any]:
    """{"sampling": as the few-step students among the adapters say that they are drawn}, before what a recipe says that
    is named for its model. All arms are drawn alike."""
    found = {p.name: drawn_by(find(p.adapter)) for p in chosen.adapters.values()}
    blocks = {name: said for name, said in found.items() if said is not None}
    if any(said != next(iter(blocks.values())) for said in blocks.values()):
        raise UserError(
            f"{' and '.join(blocks)} are few-step students that are drawn by different sampling blocks. Evaluate each "
            "by itself, against base."
        )
    return {"sampling": next(iter(blocks.values()))} if blocks else {}


def _behind(chosen: Cast, recipe: str | None, model: str | None, noisy: bool) -> Any:
    """The recipe's name or file, or a tree."""
    if recipe is not None:
        return recipe
    found = {str(place.recipe): place for place in chosen.adapters.values() if place.recipe is not None}
    models = {path: _drawn_on(load_recipe(path, on_disk=False).dump()["model"], model) for path in found}
    if len({tuple(said.items()) for said in models.values()}) > 1:
        told = " and ".join(f"{found[path].name} on {_told(said)}" for path, said in models.items())
        raise UserError(
            f"the adapters were trained on different models, {told}. Evaluate those of one model together, or give the "
            "model of all by --recipe."
        )
    if found:
        return next(iter(found))
    if model is None and not noisy:
        raise UserError("on which model? Give --recipe, or --model with a Hub id or a folder.")
    if model is None:
        return "reno/shapes"
    name, _ = recipe_of(model)
    if name != ANY or noisy:
        return name
    return {**load_recipe(ANY, on_disk=False).dump(), "rewards": {}, "sampling": {}}


def _drawn_on(said: Mapping[str, Any], model: str | None) -> dict[str, Any]:
    """What tells a recipe's model from another one; `model` takes the place of its checkpoint."""
    keys = MODEL if model is None else MODEL[2:]
    found = {key: said[key] for key in keys if said.get(key) is not None}
    for key in found.keys() & {"checkpoint", "network", "base_adapter"}:  # one folder by two names
        folder = Path(found[key]).expanduser()
        found[key] = str(folder.resolve()) if folder.exists() else found[key]
    return found


def _told(said: Mapping[str, Any]) -> str:
    more = [f"{key}={value}" for key, value in said.items() if key != "checkpoint"]
    return " with ".join([*([said["checkpoint"]] if "checkpoint" in said else ["that model"]), *more])


def _name(model: Any) -> str:
    """What recipes are found by."""
    return str(getattr(model, "network", None) or getattr(model, "checkpoint", ""))


def _optimising(recipe: Recipe) -> Recipe:
    """`recipe` with the way in which noise is optimised for its model."""
    tree = recipe.dump()
    made_for = load_recipe(recipe_of(_name(recipe.model))[0], on_disk=False).dump()
    train = {**made_for["train"], "seed": recipe.train.seed, "mixed_precision": recipe.train.mixed_precision}
    return load_recipe(
        {**tree, "objective": made_for["objective"], "optim": made_for["optim"], "train": train}, on_disk=False
    )


def _scored(config: RewardConfig) -> dict[str, Any]:
    """What a reward looks with; that another weight or form of the same score was trained on makes it no judge."""
    return config.model_dump(exclude={"weight", "form", "memory_gib", "offload", "licence"})


def _judges(trainings: Sequence[Recipe], names: Sequence[str], changes: Sequence[str]) -> dict[str, RewardConfig]:
    """Those that are named, else all that the recipes train on and report; of one label the first recipe's."""
    trained: dict[str, RewardConfig] = {}
    reported: dict[str, RewardConfig] = {}
    watched: dict[str, RewardConfig] = {}
    for recipe in reversed(trainings):  # what is there already stands behind, and is replaced where it has the label
        trained = {**recipe.rewards, **_without(trained, recipe.rewards)}
        if recipe.evaluate:
            reported = {**recipe.evaluate.rewards, **_without(reported, recipe.evaluate.rewards)}
        for hook in recipe.hooks.values():
            watched |= getattr(hook, "rewards", {})
    judges = {**trained, **_without(reported, trained)}
    if not names and not judges:
        raise UserError("by what is it judged? Give --reward, such as --reward clip aesthetic (align rewards).")
    if not names:
        return judges
    return reward_configs(names, changes, {**watched, **judges})


def _without(rewards: Mapping[str, RewardConfig], others: Mapping[str, RewardConfig]) -> dict[str, RewardConfig]:
    return {label: config for label, config in rewards.items() if label not in others}
