"""What a summary measures on machines that differ."""

import subprocess
import sys

from align.policy import adapter_file
from align.reports import summary

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
