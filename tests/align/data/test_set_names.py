"""A set whose name has a slip in it: the option that names it is said, and the set that was meant."""

import pytest
from typer.testing import CliRunner

from align.commands.app import app
from align.data._prompt_files import names_a_source

SAID = {
    "sample draft/shapes shapes:reprt": 'the prompts: there is no set shapes:reprt. Did you mean "shapes:report"?',
    "sample draft/shapes scenes:reprt": 'Did you mean "scenes:report"?',
    "evaluate best-of:2 --recipe draft/shapes --prompts shapes:reprt": "--prompts: there is no set shapes:reprt. Did",
    "evaluate best-of:2 --recipe draft/shapes --prompts scenes:reprt": "--prompts scenes:reprt: prompts come from",
    "evaluate best-of:2 --recipe draft/shapes --benchmark shapes:reprt": "--benchmark: there is no set shapes:reprt.",
    "evaluate best-of:2 --recipe draft/shapes --benchmark geneval": "as --benchmark geneval=FILE_OR_FOLDER.",
    "train draft/shapes data.prompts=shapes:xyz --dry-run": "Choose one of shapes:train, shapes:select, shapes:report.",
}


@pytest.mark.parametrize("command", SAID)
def test_a_set_that_there_is_not(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 2 and SAID[command] in done.stderr and done.stderr.count("\n") == 1, done.output
    assert not list(tmp_path.iterdir())


def test_a_word_that_begins_as_sets_do_is_no_prompt():
    assert names_a_source("scenes:nothing") and names_a_source("animals:x") and not names_a_source("style:anime")
