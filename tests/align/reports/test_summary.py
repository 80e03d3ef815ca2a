"""What a summary measures on machines that differ."""

import subprocess
import sys

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
