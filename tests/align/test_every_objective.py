"""Every objective on one, two and three processes. Here: the embedded recipes of those that train on prompts, made
small; the others have tests of their own. Shares are uneven (3 and 2 rows), and of three processes one has no row."""

from pathlib import Path

import pytest
from several import same_runs, smoothly

from align import recipes
from align.config import load_recipe
from align.registry import OBJECTIVES

ELSEWHERE = ["test_online_runs.py", "objectives/test_preference_runs.py", "noise/test_reno_processes.py"]
NAMES = [name for name in OBJECTIVES.names() if f"{name}/shapes" in recipes.names()]
LOADED = {name: load_recipe(f"{name}/shapes", on_disk=False) for name in NAMES}
HERE = [name for name, recipe in LOADED.items() if recipe.data.name == "prompts" and name != "reno"]
CASES = {2: 5, 3: 2}
"""{processes: rows of an update}."""
SMOOTH = """def smooth(images, prompts):
    sizes = images.new_tensor([sum(map(ord, prompt)) / 1000 for prompt in prompts])
    return 30 * (images * sizes.view(-1, 1, 1, 1)).sin().mean((1, 2, 3))
"""
"""A reward of picture and prompt. One that rounds pixels to levels of 8 bits leaps where rounding differs, and one of a
small gradient would leave adjoint matching with differences of what is almost equal."""


def small(name, rows, folder):
    """The recipe in two short updates."""
    tree = smoothly(LOADED[name].dump(), rows)
    tree["sampling"]["num_steps"] = min(tree["sampling"]["num_steps"], 7)
    if tree["rewards"]:
        (folder / "smooth.py").write_text(SMOOTH)
        tree["rewards"] = {"smooth": {"name": "python", "function": f"{folder / 'smooth.py'}:smooth"}}
    if name == "fairness":  # shares need two images of each
        tree["objective"]["attributes"] = list(tree["objective"]["attributes"])[:2]
        tree["train"]["batch_size"] = max(rows, 4)
    return tree | {"hooks": {}, "evaluate": None}


def test_every_objective_is_compared():
    """A new objective is: by its embedded recipe on prompts, or by its name in one of the other tests of processes."""
    told = "".join((Path(__file__).parent / name).read_text() for name in ELSEWHERE)
    assert not [name for name in OBJECTIVES.names() if name not in HERE and f'"{name}"' not in told and name != "reno"]
    assert len(HERE) >= 14


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", sorted(CASES, reverse=True))
def test_several_processes_give_the_run_of_one(tmp_path, size):
    same_runs({name: small(name, CASES[size], tmp_path) for name in HERE}, tmp_path, size, timeout=1800)
