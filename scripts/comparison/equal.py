"""Adjoint matching against DRaFT at equal proxy reward: what is left of diversity, and what the truth says.

Both by one sampler with noise and one reward. Adapters on the way are kept, and each draws several images of every
prompt; where DRaFT's proxy passes adjoint matching's last one, its other measures are read between two adapters.
"""

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

import align
from align.data.prompts import load_prompts
from align.files.output import write as write_text
from align.hooks._probes import spread
from align.policy.adapter_file import at_step
from align.policy.painter import Painter
from align.registry import REWARDS, build
from rewards import Composite
from scripts.comparison.curves import over_seeds
from scripts.comparison.methods import EQUAL
from scripts.comparison.parts import judges, policy

FOLDER, IMAGES, STOPS, FILE = "equal", 4, 5, "front.json"
FIRST, OTHER = EQUAL
LABELS = ("diversity", "gold", "judge")
Point = Mapping[str, float]

HEAD = """# Adjoint matching and DRaFT at equal proxy reward

{verdict}

Written by `python scripts/compare.py write` from measured runs; not edited by hand.

Both are trained on the shapes world's `{proxy}` by one sampler ({steps} steps, eta 1, no guidance), adjoint matching by
`{recipe}`, DRaFT through the last five steps of the same. Each of {stops} adapters on the way draws {images} images
for each of {prompts} report prompts at the same noise. *Diversity*: the mean distance of two images of one prompt,
relative to the base's. DRaFT is read where its proxy is adjoint matching's, on the line between two adapters{beyond}.
Differences are adjoint matching's above DRaFT, the mean of the seeds with its 95 % t-interval over seeds, in brackets
the seeds.

| | proxy | diversity | gold | judge | updates | seconds |
|---|---|---|---|---|---|---|
"""


def measure(output: Path, seed: int, *, prompts: int = 64) -> None:
    """Trains both and draws with each adapter kept, into output/equal/NAME/seed-N; what is there is not made again."""
    for name, method in EQUAL.items():
        folder = output / FOLDER / name / f"seed-{seed}"
        if (folder / FILE).is_file():
            continue
        updates = align.load_recipe(method.recipe, method.changes).train.num_updates
        every = max(1, updates // STOPS)
        kept = {"train.seed": seed, "train.export_every": every, "hooks": {}, "evaluate": None, "output": str(folder)}
        run = align.train(align.load_recipe(method.recipe, method.changes), kept)
        if run.interrupted:
            raise SystemExit(130)
        stops = [0, *range(every, updates + 1, every)]
        write_text(folder / FILE, json.dumps({str(step): _drawn(folder, step, seed, prompts) for step in stops}))


def _drawn(folder: Path, step: int, seed: int, count: int) -> Point:
    """The measures of the images that the adapter of an update draws; 0: the base."""
    changes = [f"adapter.init={at_step(folder, step)}"] if step else []
    recipe = align.load_recipe(str(folder / "recipe.yaml"), changes)
    painter = Painter(policy(recipe, seed), recipe.sampling, Accelerator(cpu=True), seed=seed)
    asked = [p for p in load_prompts("shapes:report", count=count, key="prompts") for _ in range(IMAGES)]
    images = torch.cat([
        painter.images("train", asked[i : i + 64], list(range(i, min(i + 64, len(asked)))), "equal")
        for i in range(0, len(asked), 64)
    ])  # fmt: skip
    trained = Composite({label: build(REWARDS, config) for label, config in recipe.rewards.items()})
    with torch.no_grad():
        terms, truth = trained(images, asked), judges()(images, asked)
    return {
        "proxy": float(sum(values.mean() for values in terms.values())),
        "diversity": float(spread(images.unflatten(0, (-1, IMAGES))).mean()),
        **{label: float(truth[label].mean()) for label in LABELS[1:]},
    }


def at_proxy(front: Sequence[Point], proxy: float) -> tuple[Point, bool]:
    """(the measures on the front's line where its proxy first is `proxy`, whether it got there); else its best end."""
    for one, two in itertools.pairwise(front):
        low, high = one["proxy"], two["proxy"]
        if min(low, high) <= proxy <= max(low, high):
            share = (proxy - low) / ((high - low) or 1.0)
            return {key: one[key] + share * (two[key] - one[key]) for key in one}, True
    return max(front, key=lambda point: point["proxy"]), False


def write(output: Path, page: Path) -> Path | None:
    """The page; None where no seed has both."""
    files = sorted((output / FOLDER / FIRST).glob(f"seed-*/{FILE}"))
    both = [path for path in files if _beside(path).is_file()]
    if not both:
        return None
    mine, other, base, reached = [], [], [], True
    for path in both:
        front = _front(path)
        there, found = at_proxy(_front(_beside(path)), front[-1]["proxy"])
        base.append(front[0])
        mine.append(_relative(front[-1], front[0]))
        other.append(_relative(there, front[0]))
        reached &= found
    recipe = align.load_recipe(EQUAL[FIRST].recipe)
    apart = {key: [a[key] - b[key] for a, b in zip(mine, other, strict=True)] for key in LABELS}
    rows = [
        f"| base | {_mean(base, 'proxy'):.3f} | 100.0% | {_mean(base, 'gold'):.3f} | {_mean(base, 'judge'):.1%} | | |"
    ]
    for name, points, paths in ((FIRST, mine, both), (f"{OTHER}, there", other, [_beside(p) for p in both])):
        rows.append(
            f"| {name} | {_mean(points, 'proxy'):.3f} | {_mean(points, 'diversity'):.1%} | {_mean(points, 'gold'):.3f} "
            f"| {_mean(points, 'judge'):.1%} | {_updates(paths)} | {_seconds(paths):.0f} |"
        )
    differences = " | ".join(over_seeds(apart[key]) for key in LABELS)
    rows.append(f"| difference | | {differences} | | |")
    verdict = "**Verdict.** At the proxy that adjoint matching reaches, it keeps "
    verdict += f"{_mean(mine, 'diversity'):.1%} of the base's diversity and DRaFT\n{_mean(other, 'diversity'):.1%}, "
    verdict += f"and its gold is {statistics.fmean(apart['gold']):+.3f} above DRaFT's."
    text = HEAD.format(
        verdict=verdict,
        proxy=", ".join(recipe.rewards),
        steps=recipe.sampling.num_steps,
        recipe=EQUAL[FIRST].recipe,
        stops=STOPS,
        images=IMAGES,
        prompts=64,
        beyond="" if reached else "; where it never was, at its highest",
    )
    page.write_text(text + "\n".join(rows) + "\n", encoding="utf-8")
    return page


def _relative(point: Point, base: Point) -> dict[str, float]:
    return {**point, "diversity": point["diversity"] / base["diversity"]}


def _beside(path: Path) -> Path:
    return path.parents[2] / OTHER / path.parent.name / FILE


def _front(path: Path) -> list[Point]:
    told: dict[str, Point] = json.loads(path.read_text(encoding="utf-8"))
    return [told[step] for step in sorted(told, key=int)]


def _updates(paths: Sequence[Path]) -> int:
    return max(int(step) for step in json.loads(paths[0].read_text(encoding="utf-8")))


def _seconds(paths: Sequence[Path]) -> float:
    return statistics.fmean(sum(r.get("seconds", 0.0) for r in align.Run(p.parent).metrics) for p in paths)


def _mean(points: Sequence[Point], key: str) -> float:
    return statistics.fmean(point[key] for point in points)
