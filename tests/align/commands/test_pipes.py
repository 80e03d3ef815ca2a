"""A command whose reader has gone: a listing ends, work goes on to its end."""

import os
import subprocess
import sys

WORK = """
import os, sys
from align.commands.pipes import to_its_end

def work():
    for number in range(5):
        print("update", number, flush=True)
        print("warning", number, file=sys.stderr, flush=True)
        sys.stdout.write("." * 100_000)
    open(sys.argv[1], "w").close()
    return 7

assert to_its_end(work)() == 7
print("and on")
"""


def run(code, *args, reads=0):
    """(the process's return code, what was read) with a reader of stdout and stderr that leaves after `reads` bytes."""
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code, *args], stdout=write, stderr=write)
    os.close(write)
    said = os.read(read, reads) if reads else b""
    os.close(read)
    return process.wait(timeout=120), said


def test_work_goes_on_without_its_reader(tmp_path):
    _code, said = run(WORK, str(tmp_path / "done"), reads=6)
    assert said == b"update" and (tmp_path / "done").is_file()


def test_with_a_reader_nothing_is_lost(tmp_path):
    done = subprocess.run([sys.executable, "-c", WORK, str(tmp_path / "done")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"update {k}\n{'.' * 100_000}" for k in range(5)) + "and on\n"
    assert done.stderr == "".join(f"warning {k}\n" for k in range(5))


def test_a_listing_ends(tmp_path):
    code, _ = run("import sys; sys.argv = ['align', 'recipes']; from align.commands.app import app; app()")
    assert code == 0


def test_a_home_that_is_nobodys_is_one_line():
    code = "import sys; sys.argv = ['align', 'train', 'draft/shapes', 'output=~nobodys/x']; "
    done = subprocess.run(
        [sys.executable, "-c", code + "from align.commands.app import app; app()"], capture_output=True
    )
    assert done.returncode == 2 and b"no such user's home" in done.stderr and b"Traceback" not in done.stderr
