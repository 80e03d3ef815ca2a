"""docs/models/presets.md: every recipe of the list with every preset, as scripts/plans.py plans it."""

import re
import runpy
from pathlib import Path

import pytest

from align.config import load_recipe
from align.models._real_size import find
from align.presets import NAMES

ROOT = Path(__file__).resolve().parents[2]
CELL = re.compile(r"([\d.]+)(?: \((int8|nf4)\))?(, does not fit)?")


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts" / "plans.py"))


@pytest.fixture(scope="module")
def rows(script):
    """{recipe: cells after its name}"""
    return cells(script["PAGE"].read_text().split("## Every")[0])


@pytest.fixture(scope="module")
def shipped(script):
    """{recipe: GiB, when, hours} of every recipe as it ships"""
    return cells(script["PAGE"].read_text().split("## Every")[1])


def cells(text):
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:3] == "| `"]
    return {line[0].strip("`"): line[1:] for line in lines}


def test_the_page_has_every_recipe_at_its_size_and_says_whether_it_fits(script, rows):
    assert list(rows) == script["RECIPES"]
    for name, (network, _, *cells, hours) in rows.items():
        recipe = load_recipe(name, on_disk=False)
        _, published = find(recipe.model.checkpoint)
        assert float(network.split()[0].replace(",", "")) == pytest.approx(1000 * published.billions, rel=0.02), name
        assert hours.endswith(f"for {recipe.train.num_updates:,} updates")
        for preset, cell in zip(NAMES, cells, strict=True):
            if cell != "refused":
                gib, _, misfit = CELL.fullmatch(cell).groups()
                assert (misfit is None) == (float(gib) <= float(preset.removesuffix("gb"))), (name, preset)


def test_every_recipe_of_a_published_checkpoint_fits_the_gpu_that_it_is_made_for(script, shipped):
    planned, left = script["published"]()
    assert list(shipped) == sorted(planned) and len(shipped) > 60
    assert "Not planned: " + ", ".join(f"`{name}`" for name in left) + "." in script["PAGE"].read_text()
    for name, (gib, _, hours) in shipped.items():
        assert float(CELL.fullmatch(gib)[1]) <= script["GPU"], name
        assert hours.endswith(f"for {load_recipe(name, on_disk=False).train.num_updates:,} updates"), name


@pytest.mark.slow
def test_a_row_is_planned_as_it_stands_there(script, rows):
    found = script["row"]("draft/sd15_hpsv2", "8gb")
    assert script["_cell"](found, "8gb") == rows["draft/sd15_hpsv2"][4]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["draft/sd15_lcm", "nft/sd35", "reno/sdxl_turbo"])
def test_a_recipe_as_it_ships_is_planned_as_it_stands_there(script, shipped, name):
    found = script["row"](name, script["AS_IT_IS"])
    assert [script["_cell"](found, "24gb"), found["most"]] == shipped[name][:2]
