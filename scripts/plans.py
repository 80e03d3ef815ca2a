"""What recipes need, as they ship and with each preset, planned on the meta device: python scripts/plans.py ROWS.jsonl

Adds a line for every (recipe, preset) that ROWS.jsonl has not, and writes all as docs/models/presets.md. Nothing is
downloaded; a large network takes half a minute.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from align import recipes
from align.config import load_recipe
from align.errors import UserError
from align.models._real_size import find
from align.plan import rehearse
from align.plan.budget import GIB, budget, hours
from align.plan.verdict import RATE
from align.presets import NAMES
from align.registry import EMBEDDED

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models" / "presets.md"
FAMILIES = ("sd15_hpsv2", "sdxl", "sd35", "flux", "flux2_klein", "pixart", "sana", "z_image_turbo", "qwen_image")
FAMILIES += ("krea2_turbo",)
RECIPES = [f"draft/{family}" for family in FAMILIES]
"""Those that are planned with each preset."""
AS_IT_IS = "as it is"
GPU = 24
"""GiB of the GPU that recipes are made for."""
TEXT = """# What recipes need

What each recipe needs on a GPU with each [preset](index.md#a-preset-for-a-gpu), in GiB, by its plan: a model of the
memory that no GPU has confirmed yet. In brackets how the network's weights are kept, where that is not their own
precision. Hours are the work of the updates alone, reckoned at {rate:g} TFLOP/s; `refused`: the weights are too many.
Where a recipe does not fit, `align plan RECIPE --memory 24GB` says what to change.

{table}

## Every recipe as it ships

In GiB and hours of updates, by the same plan. Recipes are made for a GPU of 24 GB. *Most*: when that much is needed.
Not planned: {left}.

{shipped}

Written by `scripts/plans.py`.
"""


def published() -> tuple[list[str], list[str]]:
    """The recipes of published checkpoints that can be rehearsed, and those that cannot."""
    found: tuple[list[str], list[str]] = [], []
    for name in recipes.names():
        recipe = load_recipe(name, on_disk=False)
        checkpoint = str(getattr(recipe.model, "checkpoint", ""))
        if not checkpoint.startswith(EMBEDDED):
            found[not find(checkpoint) or bool(getattr(recipe.objective, "unplanned", ""))].append(name)
    return found


def row(name: str, preset: str) -> dict[str, Any]:
    """What the recipe needs with the preset, or as it is."""
    said: dict[str, Any] = {"recipe": name, "preset": preset}
    try:
        recipe = load_recipe(name, {} if preset == AS_IT_IS else {"model.preset": preset}, on_disk=False)
    except UserError:
        return said | {"gib": None}
    found = rehearse(recipe, with_rewards=True, gpu=True)
    needed = budget(recipe, found, gpu=True)
    network = next(number for part, number in found.parameters.items() if part in ("unet", "transformer"))
    said |= {"parameters": network, "lora": found.trainable, "kept": getattr(recipe.model, "quantize", None)}
    said |= {"gib": needed.total / GIB, "most": needed.where, "hours": hours(recipe, found, RATE)[1]}
    return said | {"updates": recipe.train.num_updates}


def table(rows: list[dict[str, Any]]) -> str:
    """A line a recipe, a column a preset."""
    titles = ["recipe", "network", "LoRA", *(f"{preset}, GiB" for preset in NAMES), "hours"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name in dict.fromkeys(one["recipe"] for one in rows):
        own = {one["preset"]: one for one in rows if one["recipe"] == name}
        first = next(one for one in own.values() if one["gib"] is not None)
        cells = [f"`{name}`", f"{first['parameters'] / 1e6:,.0f} M", f"{first['lora'] / 1e6:.1f} M"]
        cells += [_cell(own[preset], preset) if preset in own else "" for preset in NAMES]
        cells.append(f"{first['hours']:.1f} for {first['updates']:,} updates")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shipped(rows: list[dict[str, Any]]) -> str:
    """A line a recipe as it ships, in the order of its name."""
    lines = ["| recipe | GiB | most | hours |", "|---|---|---|---|"]
    for one in sorted((one for one in rows if one["preset"] == AS_IT_IS), key=lambda one: one["recipe"]):
        hours = f"{one['hours']:.1f} for {one['updates']:,} updates"
        lines.append(f"| `{one['recipe']}` | {_cell(one, f'{GPU}gb')} | {one['most']} | {hours} |")
    return "\n".join(lines)


def _cell(one: dict[str, Any], preset: str) -> str:
    if one["gib"] is None:
        return "refused"
    fits = "" if one["gib"] <= float(preset.removesuffix("gb")) else ", does not fit"
    kept = f" ({one['kept']})" if one["kept"] else ""
    return f"{one['gib']:.1f}{kept}{fits}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    path = parser.parse_args().rows
    there = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(one["recipe"], one["preset"]) for one in there}
    asked = [(name, preset) for preset in NAMES for name in RECIPES] + [(name, AS_IT_IS) for name in published()[0]]
    for name, preset in asked:
        if (name, preset) not in known:
            there.append(row(name, preset))
            with path.open("a") as file:
                file.write(json.dumps(there[-1]) + "\n")
    left = ", ".join(f"`{name}`" for name in published()[1])
    told = sorted((one for one in there if one["preset"] != AS_IT_IS), key=lambda one: RECIPES.index(one["recipe"]))
    PAGE.write_text(TEXT.format(rate=RATE, table=table(told), shipped=shipped(there), left=left), encoding="utf-8")


if __name__ == "__main__":
    main()
