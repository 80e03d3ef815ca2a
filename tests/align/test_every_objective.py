"""Every objective on one, two and three processes. Here: the embedded recipes of those that train on prompts, made
small; the others have tests of their own. Shares are uneven (3 and 2 rows), and of three processes one has no row."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from two_processes import together

import align
from align import recipes
from align.config import load_recipe
from align.registry import OBJECTIVES
from align.run import Run

WORKER = Path(__file__).with_name("preference_worker.py")
ELSEWHERE = ["test_online_runs.py", "objectives/test_preference_runs.py", "noise/test_reno_processes.py"]
NAMES = [name for name in OBJECTIVES.names() if f"{name}/shapes" in recipes.names()]
LOADED = {name: load_recipe(f"{name}/shapes", on_disk=False) for name in NAMES}
HERE = [name for name, recipe in LOADED.items() if recipe.data.name == "prompts" and name != "reno"]
CASES = {2: 5, 3: 2}
"""{processes: rows of an update}."""
UNEQUAL = ("seconds", "outcome")


def small(name, rows):
    """The recipe with two updates, by plain descent: Adam would blow up the rounding of gradients that are almost 0."""
    tree = LOADED[name].dump()
    tree["train"] |= {"num_updates": 2, "batch_size": rows, "micro_batch_size": 2, "checkpoint_every": 2}
    tree["optim"] = {"algorithm": "sgd", "lr": 1e-2, "weight_decay": 0}
    tree["sampling"]["num_steps"] = min(tree["sampling"]["num_steps"], 10)
    if name == "fairness":  # shares need two images of each
        tree["objective"]["attributes"] = tree["objective"]["attributes"][:2]
        tree["train"]["batch_size"] = max(rows, 4)
    return tree | {"hooks": {}, "evaluate": None}


def numbers(run):
    return [{k: v for k, v in record.items() if k not in UNEQUAL} for record in run.metrics]


def trained(run):
    """{name: tensor} of what was exported; of a solver its numbers."""
    folder = run.output / "adapter"
    found = {f"{f.name}/{k}": t for f in sorted(folder.glob("*.safetensors")) for k, t in load_file(f).items()}
    if (folder / "solver.json").is_file():
        told = json.loads((folder / "solver.json").read_text())
        found |= {key: torch.tensor(told[key]) for key in ("times", "below")}
    return found


def test_every_objective_is_compared():
    """A new objective is: by its embedded recipe on prompts, or by its name in one of the other tests of processes."""
    told = "".join((Path(__file__).parent / name).read_text() for name in ELSEWHERE)
    assert not [name for name in OBJECTIVES.names() if name not in HERE and f'"{name}"' not in told and name != "reno"]
    assert len(HERE) >= 14


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("size", CASES)
def test_several_processes_give_the_run_of_one(tmp_path, size):
    trees = {name: small(name, CASES[size]) for name in HERE}
    (tmp_path / "recipes.json").write_text(json.dumps(trees))
    together(WORKER, tmp_path / "recipes.json", tmp_path / "several", num_processes=size)
    for name, tree in trees.items():
        one, several = align.train(tree, output=str(tmp_path / "one" / name)), Run(tmp_path / "several" / name)
        assert (one.report.num_processes, several.report.num_processes) == (1, size)
        assert one.report.network_calls == several.report.network_calls, name
        for mine, expected in zip(numbers(several), numbers(one), strict=True):
            assert mine == pytest.approx(expected, rel=1e-4, abs=1e-5), name
        first, second = trained(one), trained(several)
        assert first.keys() == second.keys() and sum(float(tensor.abs().sum()) for tensor in first.values()) > 0
        for key, tensor in second.items():
            torch.testing.assert_close(tensor, first[key], rtol=1e-5, atol=1e-6, msg=f"{name}: {key}: {{}}".format)
