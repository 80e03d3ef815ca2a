"""Two processes in one folder: the second is told who is there; an owner that died holds nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from align.errors import UserError
from align.files import lock
from align.files.lock import FILE_NAME, alone

ROOT = Path(__file__).parents[3]
HOLD = "import sys, time, pathlib; from align.files.lock import alone\n"
HOLD += "with alone(pathlib.Path(sys.argv[1]), 'output='): print('held', flush=True); time.sleep(60)"


def test_the_second_is_told_who_is_there_and_a_dead_owner_holds_nothing(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout and owner.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"output={tmp_path}: process {owner.pid} on .*works in this folder. Wait"):
        with alone(tmp_path, "output="):
            pass
    owner.kill()
    owner.wait()
    assert (tmp_path / FILE_NAME).is_file()
    with alone(tmp_path, "output="):
        pass


def test_one_process_does_not_hold_a_folder_twice(tmp_path):
    with alone(tmp_path, ""):
        with pytest.raises(UserError, match="works in this folder"):
            with alone(tmp_path, ""):
                pass
    with alone(tmp_path, ""):
        pass


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with alone(tmp_path, ""):
        assert lock.FILE_NAME in {path.name for path in tmp_path.iterdir()}
