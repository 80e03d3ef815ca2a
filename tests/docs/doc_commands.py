"""Holds a command line of the documentation against the real programs, without running it.

`align` (also behind accelerate, torchrun and python -m): every option against the command's own parser; recipes are
loaded with the overrides that are given. `python scripts/x.py`, `bash scripts/x`: the file and its options are there.
"""

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer.main
from doc_pages import ROOT

from align import recipes
from align.commands.app import app
from align.config import Recipe, load_recipe
from align.errors import UserError

HARMLESS = ("cd", "export", "git", "mkdocs", "ls", "source")
PROGRAMS = (
    "align",
    "accelerate",
    "torchrun",
    "python",
    "bash",
    "pip",
    ".venv/bin/python",
    ".venv/bin/align",
    *HARMLESS,
)


class Wrong(Exception):
    """A command that would not do what the page says."""


class Incomplete(Wrong):
    """It lacks an argument and says nothing wrong."""


def commands(text: str, *, only_known: bool = False) -> Iterator[list[str]]:
    """The command lines of a shell block, as words, without comments, variables and redirections. `only_known`: leave
    out lines that begin with no program of ours (an indented block may be output, or a picture made of words)."""
    for line in text.replace("\\\n", " ").splitlines():
        if only_known and not _starts_with_program(line):
            continue
        for part in re.split(r"\s(?:&&|\|\|?|;)\s", line):
            words = shlex.split(part, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if ">" in words:
                words = words[: words.index(">")]
            if words:
                yield words


def _starts_with_program(line: str) -> bool:
    words = [word for word in line.split() if not re.match(r"[A-Z_]+=", word)]
    return bool(words) and words[0] in PROGRAMS and not line.startswith(" ")


def check(words: Sequence[str], written: str = "", *, on_disk: bool = True) -> None:
    """Raises Wrong with what is wrong. `written`: the page's text, in which folders of runs are named."""
    program, *rest = words
    if program not in PROGRAMS:
        raise Wrong(f"{program} is no program that this test knows")
    if program.endswith("python"):
        _python(rest, written, on_disk)
    elif program in ("accelerate", "torchrun"):
        check(_launched(program, rest), written, on_disk=on_disk)
    elif program.endswith("align"):
        check_align(rest, written, on_disk=on_disk)
    elif program == "bash":
        _script(rest)
    elif program == "pip":
        _extras(rest)


def parsed(args: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """(the subcommand, its parameters) of `align ARGS`."""
    return _parsed(typer.main.get_command(app), args)


def _parsed(group: Any, args: Sequence[str]) -> tuple[str, dict[str, Any]]:
    if not args or args[0] == "--help":
        return "", {}
    name, *rest = args
    if name not in group.commands:
        raise Wrong(f"align has no command {name}")
    if name == "shapes":
        from align.shapes.cli import app as shapes

        return "shapes", _parsed(typer.main.get_command(shapes), rest)[1]
    try:
        return name, group.commands[name].make_context(name, list(rest)).params
    except Exception as error:  # typer's own click, which has no public name
        kind = Incomplete if "Missing" in type(error).__name__ or "requires an arg" in str(error) else Wrong
        raise kind(f"align {shlex.join(args)}: {getattr(error, 'message', error)}") from None


def check_align(args: Sequence[str], written: str = "", *, on_disk: bool = True) -> None:
    name, said = parsed(args)
    try:
        recipe = meant(name, said, written, on_disk=on_disk)
        if recipe is not None and name == "train":
            load_recipe(recipe.dump(), on_disk=False)
    except (UserError, ValueError) as error:
        raise Wrong(f"align {shlex.join(args)}: {error}") from None


def meant(name: str, said: dict[str, Any], written: str = "", *, on_disk: bool = True) -> Recipe | None:
    """The recipe that a command works by; None where it is a run's folder, or where the command has none."""
    if name in ("train", "pairs", "cache"):
        return load_recipe(said["recipe"], said["overrides"] or (), on_disk=on_disk)
    if name == "sample" and not _is_run(said["source"], written):
        return load_recipe(said["source"], said["change"] or ())
    if name == "report" and not _is_run(str(said["run"]), written):
        raise UserError(f"{said['run']} is a run that nothing makes")
    if name in ("reno", "best-of"):
        from align.commands.noise import assembled

        keys = ("recipe", "model", "prompts", "file", "count", "reward")
        return assembled(*(said[key] for key in keys), {}, said["change"])
    if name in ("score", "serve-reward"):
        from align.evaluation.score_inputs import reward_configs

        named = said["reward"]
        reward_configs([named] if isinstance(named, str) else named, said["change"] or ())
    return None


def _is_run(source: str, written: str) -> bool:
    """Whether `source` is a folder that some recipe, or a command of the page, writes to."""
    if source.startswith("pulled/") and re.search(rf"align pull \S+/{re.escape(Path(source).name)}\b", written):
        return True
    if not source.startswith("runs/"):
        return False
    made = {f"runs/{name.replace('/', '-')}" for name in recipes.names()}
    made |= {f"runs/{Path(title).stem}" for title in re.findall(r'title="([^"]+\.yaml)"', written)}
    made |= set(re.findall(r'output"?[=:] ?"?(runs/[\w.-]+)', written))
    if source not in made:
        raise UserError(f"{source} is written by no recipe, and by no command of the page")
    return True


def _launched(program: str, args: list[str]) -> list[str]:
    """The command behind accelerate launch or torchrun, whose own options are parsed by their parser."""
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        parser: Any = get_args_parser()
    else:
        from accelerate.commands.launch import launch_command_parser

        parser = launch_command_parser()
        if args.pop(0) != "launch":
            raise Wrong("accelerate: only launch is known here")
    try:
        said = parser.parse_args(args)
    except SystemExit:
        raise Wrong(f"{program} {shlex.join(args)}: its parser refuses this") from None
    if (file := getattr(said, "config_file", None)) and not (ROOT / file).is_file():
        raise Wrong(f"{program}: there is no {file}")
    inner = [said.training_script, *said.training_script_args]
    return ["python", *(["-m"] if said.module else []), *inner]


def _python(args: list[str], written: str, on_disk: bool) -> None:
    while args and args[0] in ("-P", "-u"):
        args = args[1:]
    if args[:2] == ["-m", "align"]:
        check_align(args[2:], written, on_disk=on_disk)
    elif args[:1] == ["-m"]:
        if importlib.util.find_spec(args[1]) is None:
            raise Wrong(f"python -m {args[1]}: there is no such module")
    else:
        _script(args)


def _script(args: list[str]) -> None:
    """The file is there; options are words of it, unless it hands them on."""
    path = ROOT / args[0]
    if not path.is_file():
        raise Wrong(f"there is no {args[0]}")
    source = path.read_text(encoding="utf-8")
    if '"$@"' in source:
        return
    for option in (word for word in args[1:] if word.startswith("-")):
        name = option.partition("=")[0].lstrip("-")
        if not re.search(rf"\b{name}\b|\b{name.replace('-', '_')}\b", source):
            raise Wrong(f"{args[0]} has no {option}")


def _extras(args: list[str]) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extra in re.findall(r"\[([\w,]+)\]", " ".join(args)):
        if missing := set(extra.split(",")) - known.keys():
            raise Wrong(f"pip: there is no extra {', '.join(missing)}")
