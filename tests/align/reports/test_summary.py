"""What a summary measures on machines that differ."""

import json
import subprocess
import sys

import pytest

from align.config import load_recipe
from align.hooks._base import Chosen, State
from align.policy import adapter_file
from align.policy.roles import Calls
from align.reports import page, summary

BLOCKED = "import sys; sys.modules['resource'] = None\n"


def test_memory_is_measured_without_resource_too(monkeypatch):
    """Windows has no `resource`; there psutil says it, and no import at the top of a file stands in the way."""
    import psutil

    monkeypatch.setitem(sys.modules, "resource", None)
    found = summary.peak_rss()
    assert 10 < found <= psutil.virtual_memory().total / 1024**2


def test_a_run_is_imported_without_what_only_unix_has():
    code = BLOCKED + "sys.modules['fcntl'] = None\nimport align.run, align.reports.summary, align.training.checkpoint"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_comes_next_is_at_the_strength_that_was_measured(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / adapter_file.FILE_NAME).touch()
    assert (
        summary.next_command(tmp_path) == f'align sample {tmp_path} "a prompt"   # or: align evaluate {tmp_path} -n 32'
    )
    said = summary.next_command(tmp_path, 1.25)
    assert said == f'align sample {tmp_path} "a prompt" --strength 1.25   # or: align evaluate {tmp_path}@1.25 -n 32'


@pytest.mark.parametrize(
    ("recipe", "kept", "told"),
    [("draft/shapes", None, True), ("draft/shapes", 30, False), ("draft/shapes objective.target=2", None, False)],
    ids=["last", "kept from before", "aimed at"],
)
def test_a_reward_that_fell_back_is_told_unless_what_was_before_is_kept(tmp_path, recipe, kept, told):
    rewards = [0.0] * 16 + [4.0] * 16 + [1.0] * 16
    records = [{"step": n, "reward/total": r, "seconds": 1.0} for n, r in enumerate(rewards, 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    state = State(num_updates=48, step=48, chosen=Chosen(kept, {}) if kept else None)
    name, *changes = recipe.split()
    found = summary.write(tmp_path, load_recipe(name, changes), state, {}, {}, Calls(), 1)
    (tmp_path / "recipe.yaml").write_text("x")
    assert found == summary.read(tmp_path)
    said = "he trained reward fell back from 4 in updates 17 to 24 to 1 in updates 41 to 48. Train shorter"
    assert any(said in line for line in summary.lines(found, tmp_path)) == told
    assert (f"T{said}" in page.write(tmp_path).read_text()) == told
