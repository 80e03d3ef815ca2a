"""Paths on the command line: the shell leaves the ~ of `--output=~/x` as it is, and it means the user's home."""

from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from typer.testing import CliRunner

from align.commands.app import app
from align.commands.values import home
from align.evaluation.files import Folder
from align.files.output import check_file, check_folder, make_folder

LATER = {("sample", "output"), ("sample", "towards")}
"""Options whose ~ is read where the path is used."""


def paths():
    """{"report run": its argument} of all that is a path."""
    found = {}
    for command in app.registered_commands:
        called: Any = command.callback
        for name, hint in get_type_hints(called, include_extras=True).items():
            kinds = get_args(get_args(hint)[0]) or get_args(hint) if get_origin(hint) is Annotated else ()
            if Path in kinds and (called.__name__, name) not in LATER:
                found[f"{called.__name__} {name}"] = get_args(hint)[1]
    return found


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """An empty home, and another empty folder to work in."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_every_path_of_the_command_line_may_begin_at_home(at_home):
    found = paths()
    assert {"report run", "watch run", "export source", "publish output", "vote output", "redraw noise"} < found.keys()
    assert {name for name, parameter in found.items() if parameter.callback is not home} == set()
    assert home(Path("~/x")) == at_home / "x" and home(None) is None


def test_a_file_at_home_is_written_there(at_home, tmp_path):
    done = CliRunner().invoke(app, ["schema", "--output=~/recipe.json"])
    assert done.exit_code == 0 and (at_home / "recipe.json").is_file()
    done = CliRunner().invoke(app, ["init", "--model", "embedded:shapes-sd", "--goal", "people", "-o", "~/mine.yaml"])
    assert done.exit_code == 0 and str(at_home / "mine.yaml") in done.stdout
    assert not list((tmp_path / "work").iterdir())


def test_a_home_that_there_is_not_is_said():
    done = CliRunner().invoke(app, ["schema", "--output=~no-such-user/recipe.json"])
    assert done.exit_code == 2 and "there is no such user's home" in done.stderr and not done.stdout


def test_a_place_at_home_is_the_same_for_all_that_write_there(at_home):
    assert check_folder(Path("~/a"), "--output") == make_folder(Path("~/a"), "--output") == at_home / "a"
    assert check_file(Path("~/a.json"), "--output") == at_home / "a.json"
    assert Folder(Path("~/b")).path == at_home / "b"
