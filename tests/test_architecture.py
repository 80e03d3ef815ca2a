"""The house as a test: who may import whom, one component a file, no branch on a family or a method."""

import ast
import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from align.registry import DATA, HOOKS, MODELS, OBJECTIVES, REWARDS
from rewards._registry import component_of

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("align", "rewards", "samplers")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
REGISTRIES = (MODELS, OBJECTIVES, REWARDS, DATA, HOOKS)
HEAVY = {"diffusers", "transformers", "peft", "open_clip", "torchvision"}


@functools.cache
def imports(path: Path, *, top_level: bool = False, typed: bool = True) -> tuple[str, ...]:
    """The modules that a file imports, dotted; with `top_level` only those that importing it imports, without `typed`
    none that only a type checker reads."""
    return tuple(_imports(path, top_level, typed))


def _imports(path: Path, top_level: bool, typed: bool) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = _executed(tree, inside=not top_level) if top_level or not typed else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                is_module = any((ROOT / Path(*below.split("."))).with_suffix(s).exists() for s in (".py", ""))
                yield below if is_module else str(node.module)


def _executed(node: ast.AST, *, inside: bool = False) -> Iterator[ast.AST]:
    """Nodes outside `if TYPE_CHECKING`, and those inside functions only where it is asked for."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not inside:
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _executed(child, inside=inside)


def within(module: str, *parents: str) -> bool:
    return any(module == parent or module.startswith(parent + ".") for parent in parents)


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def broken(rule) -> list[str]:
    """ "file: module" of every import that `rule(file, module)` forbids."""
    return [f"{name(path)}: {module}" for path in FILES for module in imports(path) if rule(name(path), module)]


def test_samplers_import_nothing_but_torch():
    allowed = sys.stdlib_module_names | {"torch", "samplers"}
    assert not broken(lambda file, module: within(file, "samplers") and module.split(".")[0] not in allowed)


def test_rewards_import_neither_samplers_nor_align():
    assert not broken(lambda file, module: within(file, "rewards") and within(module, "samplers", "align"))


def test_heavy_libraries_are_imported_inside_functions():
    """Importing them costs seconds; a mistyped recipe must not pay for them, nor need a torchvision that works."""
    found = [f"{name(p)}: {m}" for p in FILES for m in imports(p, top_level=True) if m.split(".")[0] in HEAVY]
    assert [line for line in found if not line.startswith(("align.models.", "align.policy.lora:"))] == []
    assert [line for line in found if "torchvision" in line] == []


def test_heavy_libraries_stay_in_their_files():
    """diffusers, transformers and peft are named where a family, an adapter, a reward or a checkpoint is built."""
    homes = (
        "align.models",
        "align.policy.lora",
        "align.policy.mix",
        "align.policy.adapter_tensors",
        "rewards",
        "align.shapes",
        "align.plan.networks",
    )
    homes += ("align.commands.doctor", "align.share.stock")
    assert not broken(lambda file, module: module.split(".")[0] in HEAVY and not within(file, *homes))


ARROWS = {
    # file or folder: (what it may import of align; all else of align is forbidden)
    "align.objectives": (
        "data._wanted",
        "objectives._adjusted",
        "objectives._assignment",
        "objectives._base",
        "objectives._critic",
        "objectives._direct",
        "objectives._evolution",
        "objectives._few",
        "objectives._forward",
        "objectives._inverted",
        "objectives._kept",
        "objectives._labelled",
        "objectives._losses",
        "objectives._matching",
        "objectives._paths",
        "objectives._preference",
        "objectives._priors",
        "objectives._reward",
        "objectives._rl_losses",
        "objectives._sides",
        "objectives._surrogate",
        "objectives._transitions",
        "objectives._zeroth",
        "policy.cast",
        "policy.noise",
        "policy.roles",
        "policy.soft_prompt",
        "policy.trainable",
        "sampling",
        "registry",
        "errors",
        "models._base",
        "models._identity",
        "models._small_decoder",
        "models._step_aware",
    ),
    "align.models": ("models", "registry", "errors", "files.texts", "files.weights"),
    "align.latent": ("latent", "models._base", "models._identity", "registry", "errors"),
    "align.data": (
        "data",
        "processes",
        "registry",
        "errors",
        "files.code",
        "files.lock",
        "files.output",
        "files.texts",
        "models._base",
        "models._identity",
        "models._step_aware",
        "policy.roles",
        "sampling",
        "shapes.prompts",
    ),
    "align.objectives._losses": (),
    "align.objectives._priors": (),
    "align.policy.noise": (),
    "align.policy.lora": ("policy._targets", "policy.adapter_file", "registry", "errors"),
    "align.policy.adapter_tensors": ("errors",),
    "align.policy.adapter_file": ("policy.adapter_state", "policy.adapter_tensors", "files", "errors"),
    "align.files.output": ("errors",),
    "align.training.optim": ("registry", "errors"),
    "align.registry": ("shapes.embedded",),
    "align.files.cache": (),
    "align.errors": (),
    "align.files.texts": (),
    "align.sampling": ("sampling", "registry", "errors", "models._base"),
    "align.shapes": ("shapes", "errors", "files.texts", "files.cache", "registry", "figures.picture"),
}


@pytest.mark.parametrize("room", ARROWS)
def test_arrows_inside_align(room):
    allowed = tuple(f"align.{part}" for part in ARROWS[room])
    found = broken(lambda f, m: within(f, room) and within(m, "align") and m != "align" and not within(m, *allowed))
    assert not found


LOOP = ("training.trainer", "training.update", "training.checkpoint", "policy.roles", "sampling")


@pytest.mark.parametrize("file", [f"align.{file}" for file in LOOP])
def test_the_loop_knows_no_method_family_or_reward_by_name(file):
    named = [path for registry in REGISTRIES for path in registry.modules().values()]
    assert not broken(lambda f, m: f == file and within(m, *named))


ORDER = (
    "commands vote evaluation noise run plan share reports config presets training objectives hooks policy data "
    "sampling latent models registry shapes figures source recipes versions shadow interrupt processes sharding files "
    "errors"
).split()
"""The rooms and single files of align/ from the top down: each imports only what stands after it."""


def room(module: str) -> str:
    """ "align.training.update" -> "training"; "" for what is not of align."""
    parts = module.split(".")
    return parts[1] if parts[0] == "align" and len(parts) > 1 and parts[1] not in ("__main__", "__version__") else ""


def test_a_room_imports_only_rooms_below_it():
    upward = broken(lambda f, m: (a := room(f)) and (b := room(m)) and a != b and ORDER.index(a) > ORDER.index(b))
    assert not upward


def test_every_room_has_its_place_in_the_order():
    paths = (ROOT / "align").iterdir()
    there = {path.stem for path in paths if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert there - {"__init__", "__main__"} == set(ORDER)


def test_no_two_files_import_each_other_at_any_remove():
    """Circles of files, also through imports inside functions; those under TYPE_CHECKING run nothing."""
    known = {name(path): path for path in FILES}
    packages = {name(path) for path in FILES if path.stem == "__init__"}  # they resolve names on first use
    below = {module: known.keys() & {*imports(path, typed=False)} - packages for module, path in known.items()}
    ends: set[str] | None = None
    while ends is None or ends:  # what imports nothing of the rest, or is imported by none of it, is in no circle
        imported = set().union(*below.values())
        ends = {module for module, others in below.items() if not others or module not in imported}
        below = {module: others - ends for module, others in below.items() if module not in ends}
    assert not below


def test_few_files_stand_outside_the_rooms():
    assert len(list((ROOT / "align").glob("*.py"))) <= 14


def test_no_file_repeats_the_name_of_its_room():
    """evaluation/run.py, not evaluation/evaluate_run.py."""
    assert not [
        name(path)
        for path in FILES
        if len(path.relative_to(ROOT).parts) > 2
        and (path.parent.name.rstrip("s") in path.stem.split("_") or path.parent.name in path.stem.split("_"))
    ]


def test_only_the_command_imports_the_command_and_the_run():
    above = ("align.commands.app", "align.commands.preferences", "align.__main__", "align.commands.doctor", "align")
    assert not broken(lambda f, m: within(m, "align.commands.app", "align.run") and f not in above)


READERS = {
    # what opens files: (the one reader of those that users name, the files that open what was written here)
    "Image.open(": (
        "rewards._images",
        "align.commands.sample align.evaluation.files align.figures.pages align.hooks.metrics align.noise.files "
        "align.vote.prompts",
    ),
    "csv.reader(": ("align.files.texts", ""),
    "csv.DictReader(": ("", ""),
    "utf-8-sig": ("", ""),
}


@pytest.mark.parametrize("call", READERS)
def test_files_that_users_name_have_one_reader_a_kind(call):
    """A picture that is upright for one command is so for all; so are the ends of lines and the cells of tables."""
    reader, own = READERS[call]
    opening = {name(path) for path in FILES if call in path.read_text(encoding="utf-8")}
    assert opening - {*own.split()} == {*reader.split()}


def test_no_branch_on_a_family_or_a_method():
    """A comparison with "sd" or "draft" outside its own file is a special case that belongs into a part."""
    known = {*MODELS.names(), *OBJECTIVES.names()}
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                words = {n.value for side in sides for n in ast.walk(side) if isinstance(n, ast.Constant)}
                names = {getattr(side, "id", getattr(side, "attr", "")) for side in sides}
                if names & {"family", "method"} or (words & known and names & {"name", "objective", "model"}):
                    found.append(f"{name(path)}:{node.lineno}: {ast.unparse(node)}")
            elif isinstance(node, ast.match_case):
                if {n.value for n in ast.walk(node.pattern) if isinstance(n, ast.Constant)} & known:
                    found.append(f"{name(path)}:{node.pattern.lineno}")
    assert not found


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.noun)
def test_every_public_file_of_a_registry_exposes_one_component_under_its_own_name(registry):
    assert registry.names()
    for component_name, module in registry.modules().items():
        component = component_of(importlib.import_module(module))
        assert component.Config.model_fields["name"].default == component_name
        assert registry.get(component_name) is component


def test_files_are_short_and_say_what_they_are():
    for path in [*FILES, *sorted((ROOT / "scripts").rglob("*.py"))]:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300, f"{path} asks to be split"
        assert ast.get_docstring(ast.parse(text)), f"{path} opens with no sentence"


def test_no_two_test_files_have_one_name():
    """pytest imports a test file by its bare name: of two with one name only the first is collected."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert {name for name in names if names.count(name) > 1} == set()
