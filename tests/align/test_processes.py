"""Two processes are one, and so are three: the same gradients, metrics and decisions on the same global batch."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import parity_worker
import pytest
import torch
from parity_worker import CASES
from safetensors.torch import load_file
from two_processes import together

import align
from align.policy.lora import FILE_NAME
from align.run import Run

WORKER = Path(__file__).with_name("parity_worker.py")


def reported(output, num_processes):
    return [json.loads((output / f"rank-{rank}.json").read_text()) for rank in range(num_processes)]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    for name in ("one", "two"):
        (folder / name).mkdir()
    parity_worker.main(folder / "one")
    together(WORKER, folder / "two", folders=(WORKER.parent,))
    (one,), (first, second) = reported(folder / "one", 1), reported(folder / "two", 2)
    return one, first, second


def test_there_were_two(reports):
    assert [report["num_processes"] for report in reports] == [1, 2, 2]


def same_run(mine, other, whole):
    """Two processes' reports of one case, and that of one process alone."""
    assert mine["weights"] == other["weights"]
    assert mine["weights"] == pytest.approx(whole["weights"], rel=1e-5, abs=1e-6)
    for record, its, alone in zip(mine["records"], other["records"], whole["records"], strict=True):
        assert str(record) == str(its)  # nan equals nan here
        assert record.keys() == alone.keys()
        for key, value in alone.items():
            if isinstance(value, str) or math.isnan(value):
                assert str(record[key]) == str(value)
            elif key != "rows":  # the size of a micro-batch, which is what differs
                assert record[key] == pytest.approx(value, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_run_of_one(reports, case):
    one, first, second = (report["cases"][case] for report in reports)
    same_run(first, second, one)


@pytest.mark.slow
def test_three_processes_give_it_too(reports, tmp_path):
    """Shares of 3, 3 and 2 rows, of 2, 2 and 1, and of one row for one process alone."""
    together(WORKER, tmp_path, num_processes=3, folders=(WORKER.parent,))
    three = reported(tmp_path, 3)
    assert [report["num_processes"] for report in three] == [3, 3, 3]
    for case in CASES:
        for other in three[1:]:
            same_run(three[0]["cases"][case], other["cases"][case], reports[0]["cases"][case])


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


def test_a_whole_run_is_the_same_run(tiny_sd_factory, tmp_path):
    """DRaFT on Stable Diffusion through the command line: 5 rows an update, a panel, and a report of 3 prompts."""
    tiny_sd_factory().save_pretrained(tmp_path / "model")
    recipe = {
        "model": {"name": "sd", "checkpoint": str(tmp_path / "model")},
        "objective": {"name": "draft", "num_noises": 1, "kl": 0.1},
        "data": {"name": "prompts", "prompts": ["a red star", "two cats", "x"]},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 3, "guidance_scale": 2.0, "last_k": 2},
        "optim": {"lr": 1e-3},
        "train": {"num_updates": 3, "batch_size": 5, "micro_batch_size": 2},
        "hooks": {"panel": {"prompts": list("pqr"), "rewards": {"brightness": {}}, "best": "brightness", "every": 2}},
        "evaluate": {"prompts": ["u", "v", "w"], "num_prompts": 3, "num_pictures": 3},
    }
    one = align.train(recipe, output=str(tmp_path / "one"))
    file = tmp_path / "two.yaml"
    file.write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "align"]
    done = subprocess.run(
        [*command, "train", str(file), "train.num_processes=2", f"output={tmp_path / 'two'}"],
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        cwd=WORKER.parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    two = Run(tmp_path / "two")
    assert (one.report.num_processes, two.report.num_processes) == (1, 2)
    assert one.report.network_calls == two.report.network_calls
    assert one.report.chosen_update == two.report.chosen_update
    for mine, whole in zip(two.metrics, one.metrics, strict=True):
        numbers = {key: value for key, value in whole.items() if key not in ("seconds", "outcome")}
        assert {key: mine[key] for key in numbers} == pytest.approx(numbers, rel=1e-5, abs=1e-7)
    for score, whole in zip(two.report.scores.values(), one.report.scores.values(), strict=True):
        assert score.after.mean == pytest.approx(whole.after.mean, rel=1e-5)
    adapters = [load_file(run.output / "adapter" / FILE_NAME) for run in (one, two)]
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, rtol=1e-5, atol=1e-5)
