"""Two processes share the rows of noise out and give the images of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from align.noise.files import read

WORKER = Path(__file__).with_name("reno_worker.py")


def launch(model, output, num_processes):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    paths = os.pathsep.join([str(WORKER.parents[1]), str(WORKER.parents[2]), str(WORKER.parents[3])])
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    output.mkdir()
    words = [*command, str(WORKER), str(model), str(output)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((output / f"rank-{rank}.json").read_text()) for rank in range(num_processes)]


def test_three_rows_on_two_processes(tiny_sd_factory, tmp_path):
    tiny_sd_factory(timestep_spacing="trailing").save_pretrained(tmp_path / "model")
    (one,) = launch(tmp_path / "model", tmp_path / "one", 1)
    first, second = launch(tmp_path / "model", tmp_path / "two", 2)
    assert [r["num_processes"] for r in (one, first, second)] == [1, 2, 2]
    assert first["lines"] == second["lines"]
    assert [line["index"] for line in first["lines"]] == [0, 1, 2]
    for mine, whole in zip(first["lines"], one["lines"], strict=True):
        assert mine["iteration"] == whole["iteration"] and mine["file"] == whole["file"]
        assert mine["best"] == pytest.approx(whole["best"], abs=1e-5)
        assert mine["start"] == pytest.approx(whole["start"], abs=1e-5)
    assert len(read(tmp_path / "two" / "images")) == 3  # written once
    gifs = sorted(path.name for path in (tmp_path / "two" / "images").glob("*.gif"))
    assert gifs == sorted(path.name for path in (tmp_path / "one" / "images").glob("*.gif")) and len(gifs) == 3
