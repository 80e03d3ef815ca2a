"""Pages that take the reader somewhere, walked from top to bottom as they stand, with trainings cut short."""

from pathlib import Path

import pytest
from doc_commands import commands
from doc_pages import blocks, text, written
from doc_trainings import shortly
from test_blocks import WALKED
from typer.testing import CliRunner

import align.run
from align.commands.app import app


def walk(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, only: str = "") -> str:
    """Runs the page's `align` commands in order, and returns all that they said."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(align.run, "train", shortly(align.run.train))
    written(page, folder)
    said = []
    for block in (block for block in blocks(page) if block.language in ("bash", "")):
        for words in commands(block.text, only_known=block.language == ""):
            if words[0] == "align" and only in " ".join(words):
                done = CliRunner().invoke(app, words[1:])
                assert done.exit_code == 0, f"{block}: {words}: {done.output} {done.exception!r}"
                said.append(done.output)
    return "\n".join(said)


@pytest.mark.parametrize("page", sorted(WALKED))
def test_the_page_can_be_followed(page, tmp_path, monkeypatch):
    said = walk(page, tmp_path, monkeypatch)
    trained = sorted(path.parent.name for path in tmp_path.glob("runs/*/summary.json"))
    assert (
        trained
        == {"own_reward": ["warm"], "own_pairs": ["mine"], "CONTRIBUTING": ["contrast", "glimpse"]}[Path(page).stem]
    )
    if page.endswith("own_pairs.md"):
        assert "data: 2 pairs" in said


def test_the_readmes_own_reward_trains(tmp_path, monkeypatch):
    assert "def warmth" in text("README.md")
    assert "warmth" in walk("README.md", tmp_path, monkeypatch, only="warmth")
