"""Best of n: the base's images chosen by the rewards that `draft/shapes` climbs, and what the truth says of the best.

Each image costs its network calls, its decoding and its score, and is paid for every time that one is drawn, where a
trained adapter is paid for once.
"""

import json
import time
from pathlib import Path

import torch
from accelerate import Accelerator

import align
from align.data.prompts import load_prompts
from align.files.output import write as write_text
from align.policy.painter import Painter
from scripts.comparison.parts import composite, judges, policy

FOLDER, RECIPE = "best-of-n", "draft/shapes"
NUMBERS = (1, 2, 4, 8, 16, 32, 64)


def measure(output: Path, seed: int, *, prompts: int) -> None:
    """Writes output/best-of-n/seed-N.json, {"prompts", "steps", "seconds" an image, "best": {n: {label: mean}}}; what
    is there is not drawn again."""
    path = output / FOLDER / f"seed-{seed}.json"
    if path.is_file():
        return
    recipe = align.load_recipe(RECIPE)
    painter = Painter(policy(recipe, seed), recipe.sampling, Accelerator(cpu=True), seed=seed)
    asked = load_prompts("shapes:report", count=prompts, key="prompts")
    choosing, watching, seconds = composite(recipe.rewards, recipe.combine), judges(), 0.0
    found: dict[int, dict[str, float]] = {n: {} for n in NUMBERS}
    with torch.no_grad():
        for start in range(0, len(asked), painter.batch_size):
            chosen = asked[start : start + painter.batch_size]
            rows = list(range(start, start + len(chosen)))
            images, total = torch.empty(0), torch.empty(0)
            for candidate in range(max(NUMBERS)):
                began = time.perf_counter()
                stream = f"candidate/{candidate}" if candidate else "report"
                drawn = painter.images("reference", chosen, rows, stream)
                score = choosing.combine(choosing(drawn, chosen))
                seconds += time.perf_counter() - began
                better = score > total if candidate else torch.ones(len(chosen), dtype=torch.bool)
                images = torch.where(better[:, None, None, None], drawn, images) if candidate else drawn
                total = torch.maximum(score, total) if candidate else score
                if candidate + 1 in found:
                    kept = found[candidate + 1]
                    for label, values in watching(images, chosen).items():
                        kept[label] = kept.get(label, 0.0) + float(values.sum()) / len(asked)
    told = {"prompts": len(asked), "steps": recipe.sampling.num_steps, "best": found}
    write_text(path, json.dumps(told | {"seconds": seconds / len(asked) / max(NUMBERS)}))
