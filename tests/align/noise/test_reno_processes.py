"""Two processes share the rows of noise out and give the images of one."""

import json
from pathlib import Path

import pytest
import reno_worker
from two_processes import together

from align.noise.files import read

WORKER = Path(__file__).with_name("reno_worker.py")


def reported(output, num_processes):
    return [json.loads((output / f"rank-{rank}.json").read_text()) for rank in range(num_processes)]


def test_three_rows_on_two_processes(tiny_sd_factory, tmp_path):
    tiny_sd_factory(timestep_spacing="trailing").save_pretrained(tmp_path / "model")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    reno_worker.main(str(tmp_path / "model"), tmp_path / "one")
    together(WORKER, tmp_path / "model", tmp_path / "two", folders=(WORKER.parent, WORKER.parents[1]))
    (one,), (first, second) = reported(tmp_path / "one", 1), reported(tmp_path / "two", 2)
    assert [r["num_processes"] for r in (one, first, second)] == [1, 2, 2]
    assert first["lines"] == second["lines"]
    assert [line["index"] for line in first["lines"]] == [0, 1, 2]
    for mine, whole in zip(first["lines"], one["lines"], strict=True):
        assert mine["iteration"] == whole["iteration"] and mine["file"] == whole["file"]
        assert mine["best"] == pytest.approx(whole["best"], abs=1e-5)
        assert mine["path"] == pytest.approx(whole["path"], rel=1e-4, abs=1e-5) and len(mine["path"]) > 1
        assert mine["start"] == pytest.approx(whole["start"], abs=1e-5)
    assert len(read(tmp_path / "two" / "images")) == 3  # written once
    gifs = sorted(path.name for path in (tmp_path / "two" / "images").glob("*.gif"))
    assert gifs == sorted(path.name for path in (tmp_path / "one" / "images").glob("*.gif")) and len(gifs) == 3
