"""Several processes of one program on the CPU, joined by what torchrun would tell them: without the launcher, which
imports torch for itself. The launcher is tried in tests/align/test_processes.py."""

import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
TIMEOUT = 500


def together(
    *words: str | Path, num_processes: int = 2, folders: tuple[Path, ...] = (), timeout: int = TIMEOUT
) -> None:
    """Runs `python WORDS` so often at once, in the project's folder; fails with what they said if one fails, or runs
    for more than `timeout` seconds. `folders` are looked through for modules too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join(map(str, (TESTS, *folders, TESTS.parent)))
    shared = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_processes)}
    shared |= {"LOCAL_WORLD_SIZE": str(num_processes)}
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=TESTS.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(num_processes)
    ]
    try:
        said = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(text[-3000:] for text in said)
