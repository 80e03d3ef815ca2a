"""The run on a GPU: its order, its limits and its page; the way itself is walked at tiny size by a slow test."""

import json
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "on_gpu.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT), run_name="on_gpu")


def test_every_network_has_a_job_and_the_largest_are_quantised_where_they_must_be(script):
    for gib, quantised in ((24, ["FLUX.1-dev", "Qwen-Image"]), (80, []), (40, ["Qwen-Image"])):
        jobs = list(script["jobs"]({"gib": gib, "tflops": 1.0}, tiny=False))
        kept = [job.name.split("/")[-1] for job in jobs if "nf4" in job.command]
        assert kept == quantised
        assert [job.name for job in jobs[1:3]] == ["rehearsal", "tests/gpu"] and jobs[-1].name == "reno/shapes"
        labels = [script["label"](job) for job in jobs]
        assert len({*labels}) == len(labels) == 11


def test_a_job_that_hangs_or_fails_costs_its_own_row(script):
    say = 'import time; print("{\\"checkpoint\\": \\"a\\", \\"method\\": \\"m\\", \\"seconds\\": 2}", flush=True); '
    hangs = script["Job"]("slow", [sys.executable, "-c", say + "time.sleep(60)"], 9)
    fails = script["Job"]("broken", [sys.executable, "-c", say + "raise ValueError('no memory')"], 9)
    (kept, late), (also, broken) = script["run"](hangs, 1.5), script["run"](fails, 9)
    assert kept["seconds"] == also["seconds"] == 2
    assert late["failed"] == "not done within 2 s" and broken["failed"] == "ValueError: no memory"


def test_what_a_job_has_started_ends_with_it(script):
    """A grandchild that holds the output would keep the run waiting for it."""
    child = "import subprocess, time; subprocess.Popen(['sleep', '30']); "
    started = time.perf_counter()
    for after, kept in (("time.sleep(30)", "failed"), ("print('{\"seconds\": 1}')", "seconds")):
        (row,) = script["run"](script["Job"]("with a child", [sys.executable, "-c", child + after], 9), 1.0)
        assert kept in row
    assert time.perf_counter() - started < 8


def test_rows_go_into_the_page_once(script, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Performance\n\nbefore\n")
    device = {"device": "A card", "gib": 24.0, "tflops": 100.0, "torch": "2"}
    row = {"checkpoint": "a/b", "method": "draft", "seconds": 1.25, "peak_gib": 9.0, "size": [512, 512]}
    row |= {"last_k": 1, "reward": "hpsv2", "share_of_peak": 0.4, "kept": "nf4"}
    for _ in range(2):
        script["write"]([device, row, {"tests": "3 passed"}, {"checkpoint": "c", "failed": "no memory"}], page)
    text = page.read_text()
    assert text.count("| a/b (nf4) | draft | 1 | 512 x 512 | hpsv2 | 1.25 | 9.0 | 40.0% |") == 1
    assert "before" in text and "A card, 24 GiB, 100 TFLOP/s" in text and "c: no memory." in text
    said = "  iteration, batch 1     0.0870 s\n  network                0.04 s\n  published              0.1340 s\n"
    assert [row["seconds"] for row in script["timed"](said)] == [0.087, 0.134]


@pytest.mark.slow
def test_the_way_is_walked(tmp_path):
    command = [sys.executable, "-P", str(SCRIPT), "--output", str(tmp_path), "--tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert not [row for row in rows if "failed" in row]
    methods = [row["method"] for row in rows if "method" in row]
    assert methods[:3] == ["draft", "diffusion_dpo", "draft, whole run"] and methods[-1] == "reno, published"
    assert any("1 passed" in row.get("tests", "") for row in rows)
    assert (tmp_path / "performance.md").read_text().count("\n| ") == len(methods) + 1
