"""Two processes are one: the same gradients, metrics and decisions on the same global batch."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from parity_worker import CASES

WORKER = Path(__file__).with_name("parity_worker.py")


def launch(output, num_processes):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    paths = os.pathsep.join([str(WORKER.parent), str(WORKER.parents[2])])
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    output.mkdir()
    done = subprocess.run(
        [*command, str(WORKER), str(output)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((output / f"rank-{rank}.json").read_text()) for rank in range(num_processes)]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (one,) = launch(folder / "one", 1)
    first, second = launch(folder / "two", 2)
    return one, first, second


def test_there_were_two(reports):
    assert [report["num_processes"] for report in reports] == [1, 2, 2]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_run_of_one(reports, case):
    one, first, second = (report["cases"][case] for report in reports)
    assert first["weights"] == second["weights"]
    assert first["weights"] == pytest.approx(one["weights"], rel=1e-5, abs=1e-6)
    for mine, other, whole in zip(first["records"], second["records"], one["records"], strict=True):
        assert str(mine) == str(other)  # nan equals nan here
        assert mine.keys() == whole.keys()
        for key, value in whole.items():
            if isinstance(value, str) or math.isnan(value):
                assert str(mine[key]) == str(value)
            elif key != "rows":  # the size of a micro-batch, which is what differs
                assert mine[key] == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_the_cases_are_what_they_say(reports):
    one = reports[0]
    outcomes = {case: [r["outcome"] for r in report["records"]] for case, report in one["cases"].items()}
    assert outcomes["not finite"] == ["applied", "not finite"] + ["applied"] * 4
    assert set(outcomes["all rows dropped"]) == {"empty"}
    assert one["cases"]["all rows dropped"]["weights"] == one["fresh"] != one["cases"]["even"]["weights"]


def test_a_signal_to_one_process_ends_both_after_the_same_update(reports):
    for report in reports:
        step, name, checkpoints = report["signal"]
        assert (step, name, checkpoints) == (2, "SIGTERM", 1)
