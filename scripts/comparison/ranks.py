"""ZO-RankSGD with gold as the oracle, against what it is without its parts and best of n at as many renders."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import align
from align.data.prompts import load_prompts
from align.noise import ranks
from align.noise.best_of import best_of
from align.noise.oracle import by_rewards
from align.noise.studio import Row, Studio
from samplers import Rng
from scripts.comparison.curves import over_seeds

RECIPE, FOLDER, LABELS = "reno/shapes_ranks", "ranks", ("gold", "judge")

HEAD = """# Noise climbed by ranks on the shapes world

{verdict}

Written by `python scripts/compare.py write` from measured runs; not edited by hand.

ZO-RankSGD by the recipe `{recipe}` ({rounds} rounds of {shown} images and {lengths} steps, {renders} renders an image),
ordered by gold, which it therefore climbs; the judge only looks on. {prompts} report prompts a seed; a change is to the
image that was there first, the mean of the seeds with its 95 % t-interval over seeds, in brackets the seeds themselves.
*Released*: the weights of the authors' code, m - 2r, which do not sum to 0. *Retraction*: every state is put back to
the length that noise has. *Length*: of the final noise, 1 is that of noise. Best of n draws as many images.

"""


def released(m: int, order: Sequence[int]) -> Tensor:
    """The weights of the published code: m - 2 r where the method has m - 1 - 2 r."""
    k = len(order)
    found = torch.full((m,), -float(k), dtype=torch.float64)
    for rank, i in enumerate(order):
        found[i] = m - 2 * rank
    return found / (k * (k - 1) / 2 + k * (m - k))


class Unretracted(ranks.Search):
    """The states stay where the steps lead."""

    retract = staticmethod(lambda x: x)


class Released(Unretracted):
    """And the weights are the published code's."""

    weights = staticmethod(released)


ARMS: dict[str, type[ranks.Search] | None] = {
    "released weights": Released,
    "right weights": Unretracted,
    "right weights, retraction": ranks.Search,
    "best of n": None,
}


def measure(output: Path, seed: int, *, prompts: int = 64) -> None:
    """Climbs and scores what is missing, into output/ranks/ARM/SEED.json."""
    changes = [f"train.seed={seed}", f"data.count={prompts}", "rewards={gold: {}}", "evaluate.rewards={judge: {}}"]
    recipe = align.load_recipe(RECIPE, changes)
    config: Any = recipe.objective
    studio = Studio(recipe)
    rows = [Row(i, prompt) for i, prompt in enumerate(load_prompts("shapes:report", count=prompts, key="prompts"))]
    rounds, count = recipe.train.num_updates, renders(config.ranks, recipe.train.num_updates)
    for name, kind in ARMS.items():
        path = _folder(output, name) / f"{seed}.json"
        if path.is_file():
            continue
        start = studio.noise(rows)
        if kind is None:
            ends = best_of(studio, rows, count=count).x_T
        else:
            bar = tqdm(rows, desc=f"{name}, seed {seed}")
            ends = torch.stack([_climbed(studio, kind, config.ranks, row, rounds) for row in bar])
        said = {"length": (ends.flatten(1).norm(dim=1) / ends[0].numel() ** 0.5).tolist(), "renders": count}
        for part, states in (("before", start), ("after", ends)):
            scored = [studio.finished(row, x)[1] for row, x in zip(rows, states, strict=True)]
            said |= {f"{part}/{label}": [float(s[label]) for s in scored] for label in LABELS}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(said), encoding="utf-8")


def _folder(output: Path, arm: str) -> Path:
    return output / FOLDER / arm.replace(" ", "-").replace(",", "")


def renders(config: Any, rounds: int) -> int:
    """Images drawn for one, its first among them."""
    return 1 + rounds * (config.num_images + config.num_lengths)


@torch.no_grad()
def _climbed(studio: Studio, kind: type[ranks.Search], config: Any, row: Row, rounds: int) -> Tensor:
    """The last incumbent's noise (C, h, w)."""
    search = kind(config, studio.noise([row])[0], ranks.renderer(studio, row))
    for number in range(rounds):
        rng = Rng(studio.seed, [row.index], number)
        xi = torch.stack([rng.normal(f"rank/{j}", search.x[None])[0] for j in range(config.num_images)])
        search.round(by_rewards(studio.rewards, row.prompt), xi)
    return search.x


def write(output: Path, page: Path) -> Path | None:
    """The page; None where nothing has been measured."""
    found = {}
    for name in ARMS:
        paths = sorted(_folder(output, name).glob("*.json"))
        if paths:
            found[name] = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if not found:
        return None
    recipe = align.load_recipe(RECIPE)
    config: Any = recipe.objective
    told = {"recipe": RECIPE, "rounds": recipe.train.num_updates, "shown": config.ranks.num_images}
    told |= {"lengths": config.ranks.num_lengths, "renders": renders(config.ranks, recipe.train.num_updates)}
    lines = ["| search | gold | judge | length |", "|---|---|---|---|"]
    gains = {name: [_gain(run, "gold") for run in runs] for name, runs in found.items()}
    for name, runs in sorted(found.items(), key=lambda item: -statistics.fmean(gains[item[0]])):
        length = statistics.fmean(x for run in runs for x in run["length"])
        judged = over_seeds([_gain(run, "judge") for run in runs])
        lines.append(f"| {name} | {over_seeds(gains[name])} | {judged} | {length:.2f} |")
    means = {name: statistics.fmean(each) for name, each in gains.items()}
    best, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    verdict = f"**Verdict.** {best} gains most gold at equal renders, {means[best]:+.3f},\nand {least} least, "
    first = next(iter(found.values()))[0]
    head = HEAD.format(verdict=f"{verdict}{means[least]:+.3f}.", prompts=len(first["length"]), **told)
    page.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return page


def _gain(run: dict[str, Any], label: str) -> float:
    return statistics.fmean(run[f"after/{label}"]) - statistics.fmean(run[f"before/{label}"])
