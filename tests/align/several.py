"""Runs on several processes beside the same on one, for the tests that say that they are one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from two_processes import TIMEOUT, together

import align
from align.run import Run

LIMITS = {"adjoint_matching": 1e-3, "fairness": 1e-3, "d3po": 1e-3}
"""Of metrics and gradient norms, where 1e-4 is too little: adjoint matching's second update regresses on what the first
left, which is small; fairness's likeness, 1 - cos of pictures that are still almost the base's own, is rounding there
(at preserve 0 the norms are equal to all digits); D3PO's images of a group share their noise, and advantages are over
their spread: five images whose brightness rounds by 5e-7 differ by 3e-4 there. The first updates' are equal."""
WORKER = Path(__file__).with_name("preference_worker.py")


def numbers(run: Run) -> list[dict[str, Any]]:
    """The record of each update, without what no two runs have in common."""
    return [{k: v for k, v in record.items() if not k.endswith("seconds") and k != "outcome"} for record in run.metrics]


def trained(run: Run) -> dict[str, torch.Tensor]:
    """{file and name: tensor} of what was exported; of a solver its numbers."""
    folder = run.output / "adapter"
    found = {f"{f.name}/{k}": t for f in sorted(folder.glob("*.safetensors")) for k, t in load_file(f).items()}
    if (folder / "solver.json").is_file():
        told = json.loads((folder / "solver.json").read_text())
        found |= {key: torch.tensor(told[key]) for key in ("times", "below")}
    return found


def smoothly(tree: dict[str, Any], rows: int) -> dict[str, Any]:
    """The recipe in two updates of so many rows, one in a pass, by plain descent: a matrix product of other rows rounds
    otherwise, and Adam would blow up the rounding of gradients that are almost 0."""
    train = {"num_updates": 2, "batch_size": rows, "micro_batch_size": 1, "checkpoint_every": 2}
    optim = {"algorithm": "sgd", "lr": 1e-2, "weight_decay": 0}
    return tree | {"train": tree["train"] | train, "optim": optim}


def same_runs(trees: dict[str, Any], folder: Path, num_processes: int, timeout: int = TIMEOUT, **apart: Any) -> None:
    """Each recipe on several processes, and on one; says all that differ. `apart`: {name: settings of the recipe on
    several}."""
    (folder / "recipes.json").write_text(json.dumps({name: tree | apart.get(name, {}) for name, tree in trees.items()}))
    together(WORKER, folder / "recipes.json", folder / "several", num_processes=num_processes, timeout=timeout)
    unlike = []
    for name, tree in trees.items():
        one, several = align.train(tree, output=str(folder / "one" / name)), Run(folder / "several" / name)
        assert (one.report.num_processes, several.report.num_processes) == (1, num_processes)
        try:
            same(one, several)
        except AssertionError as error:
            unlike.append(f"{name}: {error}")
    assert not unlike, "\n\n".join(unlike)


def same(one: Run, several: Run) -> None:
    """Weights to 1e-5; metrics to 1e-4, because some are differences over a small spread, and the gradient's norm."""
    limit = LIMITS.get(getattr(one.recipe.objective, "name", ""), 1e-4)
    assert one.report.network_calls == several.report.network_calls or "cache" in one.recipe.data.model_dump()
    for mine, expected in zip(numbers(several), numbers(one), strict=True):
        leaping = [key for key in expected if key.startswith("accuracy")]  # counts of signs, also of what is almost 0
        mine, expected = ({k: v for k, v in record.items() if k not in leaping} for record in (mine, expected))
        assert mine == pytest.approx(expected, rel=limit, abs=limit)
        assert mine.get("grad_norm", 0) == pytest.approx(expected.get("grad_norm", 0), rel=limit, abs=0)
    first, second = trained(one), trained(several)
    assert first.keys() == second.keys() and sum(float(tensor.abs().sum()) for tensor in first.values()) > 0
    for key, tensor in second.items():
        torch.testing.assert_close(tensor, first[key], rtol=1e-5, atol=1e-6, msg=f"{key}: {{}}".format)
