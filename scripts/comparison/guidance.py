"""Guidance and solvers beside plain guidance of as many network calls: one file an arm, read by prompt in pairs.

Every arm draws the same report prompts from the same x_T. Plain guidance of fewer steps is what each is held against.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import align
from align.data.prompts import load_prompts, words
from align.figures.statistics import compare
from align.files.output import write as write_text
from align.noise.studio import Row, Studio
from align.sampling import SamplingConfig, rollout
from rewards import Composite
from samplers import Rng
from scripts.comparison.figures import lines

FOLDER, LABELS, BATCH = "guidance", ("judge", "gold"), 64
STEPS, EQUAL = 20, 15
"""Of guidance in full, and in full at three quarters of its calls, which is what the others may take."""
EVALUATOR = {"name": "clip", "model": "embedded:shapes-pick", "form": "logit"}
SCALES = (1.0, 2.0, 3.0, 4.5)
FEW, LONG = 5, 50
"""Steps of the learned solver and of the path it is to end with."""
PLAIN, DYNAMIC, BEST = "plain", "dynamic by pick", "best of n by pick"
FULL, PATH = f"{PLAIN} {STEPS}", f"{PLAIN} {LONG}"


@dataclass(frozen=True)
class Arm:
    """A sampling block, and the arm whose ends its own are to be near."""

    sampling: Mapping[str, Any]
    towards: str = FULL
    choices: bool = False
    """Several images a prompt, of which the evaluator takes one: as many as cost what `dynamic` costs."""
    plus_plus: bool = False
    """lambda is what means the scale on average over this grid."""


def plain(steps: int, w: float, towards: str = FULL) -> Arm:
    return Arm({"num_steps": steps, "guidance_scale": w}, towards)


def arms(w: float, solver: Path | None = None) -> dict[str, Arm]:
    """{name: arm} at the scale w; the solver's file, or none of it."""

    def at(steps: int, **guidance: Any) -> dict[str, Any]:
        return {"num_steps": steps, "guidance": {"scale": w} | guidance}

    by_choice = {"dynamic": {"scales": SCALES, "rewards": {"pick": EVALUATOR}, "every": 3}}
    found = {
        FULL: plain(STEPS, w),
        f"{PLAIN} {EQUAL}": plain(EQUAL, w),
        "none": plain(2 * EQUAL, 1.0),
        "adaptive in x0": Arm(at(STEPS, skip="adaptive", space="x0")),
        "adaptive in v": Arm(at(STEPS, skip="adaptive", space="v")),
        "interval, the middle half": Arm(at(STEPS, interval=(0.25, 0.75))),
        "the first half": Arm(at(STEPS, skip="fraction")),
        "refresh, none between": Arm(at(STEPS, skip="refresh")),
        "refresh, delta": Arm(at(STEPS, skip="refresh", reuse="delta")),
        "refresh, delta2": Arm(at(STEPS, skip="refresh", reuse="delta2")),
        "CFG++": Arm(at(EQUAL, plus_plus=True), plus_plus=True),
        "CFG-Zero*": Arm(at(EQUAL, zero_star=True)),
        DYNAMIC: Arm({"num_steps": EQUAL, "guidance": by_choice}),
        BEST: Arm(plain(EQUAL, w).sampling, choices=True),
        PATH: plain(LONG, w, PATH),
        f"{PLAIN} {FEW}": plain(FEW, w, PATH),
    }
    for rule, more in (("dpmpp_2m", {}), ("ghvb", {"order": 2, "beta": 0.8})):
        found[f"{rule}, {FEW} steps"] = Arm({**plain(FEW, w).sampling, "step_rule": rule, **more}, PATH)
    if solver is not None:
        found[f"learned, {FEW} steps"] = Arm({**plain(FEW, w).sampling, "solver": str(solver)}, PATH)
    return found


HEAD = """# Guidance and solvers at equal calls on the shapes world

{verdict}

Written by `python scripts/compare.py write` from measured runs; not edited by hand.

`shapes-sd` as it is, {prompts:,} report prompts from the same noise, guidance {w:g}. *Calls*: rows of the network an
image, counted. *Beside*: plain guidance in as many calls as come nearest; the differences to it are paired by prompt,
in points of the strict judge and in gold, with their 95 % intervals. *Distance*: the root mean square of the latents to
those of `plain {steps}`, and for the arms of {few} steps to those of `plain {long}`. *Seconds*: CPU seconds an image,
decoder and evaluator counted, the judges not, on a machine that did other work beside. CFG++'s lambda is the one that
means the same scale on average over its steps. `{dynamic}` asks the preference reward about {scales} at each third
step; `{best}` draws as many images as take that long{n}, and is held against it. `learned` is `solver/shapes` at this
guidance.

| arm | calls | beside | judge | judge, paired | gold, paired | distance | seconds |
|---|---|---|---|---|---|---|---|
"""


@dataclass
class Desk:
    """One model, its judges and the prompts; draws what is missing."""

    output: Path
    prompts: int
    w: float
    solver: Path | None = None
    batch: int = BATCH
    recipe: Any = None
    arms: dict[str, Arm] = field(init=False)

    def __post_init__(self) -> None:
        self.arms = arms(self.w, self.solver)
        judged = {label: {} for label in LABELS} | {"pick": EVALUATOR}
        base = self.recipe or "tdm/shapes"
        self.studio = Studio(align.load_recipe(base, ["train.seed=0", f"rewards={json.dumps(judged)}"]))
        asked = load_prompts("shapes:report", count=self.prompts, key="prompts")
        self.rows = [Row(i, prompt) for i, prompt in enumerate(asked)]
        of: Any = self.studio.rewards.rewards
        self.judges = Composite({label: of[label] for label in LABELS})
        self.evaluator = Composite({"pick": of["pick"]})

    def measure(self, name: str) -> dict[str, Any]:
        """The arm's file, and before it those that it is held against."""
        path = place(self.output, name)
        if not path.is_file():
            arm = self.arms.get(name) or plain(int(name.split()[1]), self.w)
            reference = None if name == arm.towards else self.ends(arm.towards)
            said, ends = self._drawn(arm, self._count() if arm.choices else 1)
            if reference is not None:
                said["distance"] = (ends - reference).flatten(1).square().mean(1).sqrt().tolist()
            said |= {"w": self.w, "sampling": self._sampling(arm).of_images()}
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in (FULL, PATH):
                save_file({"x0": ends}, path.with_suffix(".safetensors"))
            write_text(path, json.dumps(said))
        said = json.loads(path.read_text(encoding="utf-8"))
        if len(said["judge"]) != self.prompts or said["w"] != self.w:
            raise SystemExit(f"{path} is of other prompts or guidance. Remove {path.parent}, or name another --output.")
        if (other := beside(name, said["calls"])) != name:
            self.measure(other)
        return said

    def ends(self, name: str) -> Tensor:
        """(n, C, h, w) latents of an arm that others are held against."""
        self.measure(name)
        return load_file(place(self.output, name).with_suffix(".safetensors"))["x0"]

    def _count(self) -> int:
        """Images of best of n that take as long as choosing scales does."""
        long, short = (self.measure(name)["seconds"] for name in (DYNAMIC, f"{PLAIN} {EQUAL}"))
        return max(2, round(long / short))

    @torch.no_grad()
    def _drawn(self, arm: Arm, count: int) -> tuple[dict[str, Any], Tensor]:
        sampling, studio = self._sampling(arm), self.studio
        said: dict[str, Any] = {label: [] for label in LABELS} | {"n": count}
        ends, spent, before = [], 0.0, studio.policy.calls.forward
        for start in range(0, len(self.rows), self.batch):
            rows = self.rows[start : start + self.batch]
            prompts = [row.prompt for row in rows]
            began = time.process_time()
            kept: tuple[Tensor, Tensor, Tensor] | None = None
            for number in range(count):
                x0, images = self._images(sampling, rows, number)
                liked = self.evaluator(images, prompts)["pick"] if count > 1 else images.new_zeros(len(rows))
                kept = (x0, images, liked) if kept is None else _better(kept, (x0, images, liked))
            spent += time.process_time() - began
            assert kept is not None
            for label, scores in self.judges(kept[1], prompts).items():
                said[label] += scores.tolist()
            ends.append(kept[0].float())
        rows_drawn = studio.policy.calls.forward - before
        said |= {"calls": rows_drawn / len(self.rows), "seconds": spent / len(self.rows)}
        return said, torch.cat(ends)

    def _images(self, sampling: SamplingConfig, rows: Sequence[Row], candidate: int) -> tuple[Tensor, Tensor]:
        prompts, rng = [row.prompt for row in rows], Rng(self.studio.seed, [row.index for row in rows])
        x_T, role = self.studio.noise(rows, candidate), self.studio.policy.role("reference")
        x0 = rollout(sampling, self.studio.model, role, prompts, rng, x_T=x_T).x0
        return x0, (self.studio.model.codec.decode(x0).float() * 255).round() / 255

    def _sampling(self, arm: Arm) -> SamplingConfig:
        told = dict(arm.sampling)
        if arm.plus_plus:
            block = SamplingConfig.model_validate({"num_steps": told["num_steps"]})
            lam = self.w / mean_gain(block.grid(self.studio.model).times, self.studio.model.schedule)
            told["guidance"] = told["guidance"] | {"scale": min(1.0, lam)}
        return SamplingConfig.model_validate(told)


def _better(old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> Any:
    """Row by row what is liked more, the last of each; of equals the old one."""
    chosen = new[-1] > old[-1]
    return tuple(torch.where(chosen.view(-1, *[1] * (a.ndim - 1)), b, a) for a, b in zip(old, new, strict=True))


def mean_gain(times: Tensor, schedule: Callable[[Tensor], tuple[Tensor, Tensor]]) -> float:
    """What CFG++'s lambda = 1 is as a scale of guidance, the mean over the steps of 1/(1 - r), r = sbar_s/sbar_t."""
    sbar = torch.stack([(sigma / alpha).double() for alpha, sigma in (schedule(t) for t in times)])
    return float((1 / (1 - sbar[1:] / sbar[:-1])).mean())


def place(output: Path, name: str) -> Path:
    return output / FOLDER / f"{name.replace(' ', '-').replace(',', '').replace('*', '-star')}.json"


def beside(name: str, calls: float) -> str:
    """The plain arm of as many calls; best of n has as many seconds as choosing scales has."""
    return DYNAMIC if name == BEST else f"{PLAIN} {max(1, round(calls / 2))}"


def learn(output: Path, w: float, changes: Sequence[str] = ()) -> Path:
    """Trains the solver of few steps at this guidance; one that has ended is read."""
    folder = output / FOLDER / "solver"
    told = [f"sampling.num_steps={FEW}", f"sampling.guidance_scale={w}", f"output={folder}", *changes]
    if align.train("solver/shapes", told).interrupted:
        raise SystemExit(130)
    return folder


def measure(output: Path, names: Sequence[str], *, prompts: int, w: float, batch: int, solver: bool = True) -> None:
    """Draws what is missing of the arms `names`, or of all."""
    if unknown := set(names) - set(arms(w, Path())):
        raise SystemExit(f"{', '.join(sorted(unknown))}: known are {'; '.join(arms(w, Path()))}.")
    wanted = solver and (not names or any(name.startswith("learned") for name in names))
    desk = Desk(output, prompts, w, learn(output, w) if wanted else None, batch)
    for name in names or desk.arms:
        said = desk.measure(name)
        print(f"{name}: {said['calls']:.1f} calls, {1 / said['seconds']:.1f} images/s", flush=True)


def write(output: Path, page: Path) -> Path | None:
    """The page; None where nothing has been measured."""
    files = sorted((output / FOLDER).glob("*.json"))
    found: dict[str, Any] = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    if not found:
        return None
    first = next(iter(found.values()))
    named = {place(output, name).stem: name for name in arms(first["w"], Path())}
    order = [stem for stem in named if stem in found]
    order += sorted((stem for stem in found if stem not in named), key=lambda stem: found[stem]["calls"])
    asked = [words(p) for p in load_prompts("shapes:report", count=len(first["judge"]), key="prompts")]
    rows, gains = [], {}
    for stem in order:
        said, name = found[stem], named.get(stem) or stem.replace("-", " ")
        other = beside(name, said["calls"])
        reference = None if other == name else found.get(place(output, other).stem)
        held, judged, gold = "", "", ""
        if reference is not None:
            pairs = [(torch.tensor(reference[k]), torch.tensor(said[k])) for k in LABELS]
            judge, liked = (compare(a, b, asked).difference for a, b in pairs)
            held, (low, high) = other, judge.edges
            judged = f"{100 * judge.mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            gold = f"{liked.mean:+.3f} [{liked.within('+.3f')}]"
            gains[name] = judge
        passed = sum(said["judge"]) / len(said["judge"])
        away = f"{sum(said['distance']) / len(said['distance']):.3f}" if "distance" in said else ""
        rows.append(
            f"| {name} | {said['calls']:.1f} | {held} | {passed:.1%} | {judged} | {gold} | {away} "
            f"| {said['seconds']:.3f} |"
        )
    n = found.get(place(output, BEST).stem, {}).get("n")
    told = {
        "prompts": len(first["judge"]),
        "w": first["w"],
        "steps": STEPS,
        "long": LONG,
        "few": FEW,
        "dynamic": DYNAMIC,
    }
    told |= {"best": BEST, "scales": ", ".join(f"{w:g}" for w in SCALES), "n": f", {n}" if n else ""}
    chart = _chart({named.get(stem) or stem.replace("-", " "): found[stem] for stem in order})
    write_text(page.parent / "img" / "guidance.svg", chart)
    figure = "\n![Share that the judge passes over network calls, plain guidance as a line](img/guidance.svg)\n"
    text = HEAD.format(verdict=_verdict(gains), **told) + "\n".join(rows) + "\n" + figure
    page.write_text(text, encoding="utf-8")
    return page


def _verdict(gains: Mapping[str, Any]) -> str:
    better = [f"{name} ({100 * g.mean:+.1f})" for name, g in gains.items() if g.edges[0] > 0]
    worse = [name for name, g in gains.items() if g.edges[1] < 0]
    said = f"of {len(gains)} arms beside what costs as much, the judge passes more of {', '.join(better) or 'none'},"
    return f"**Verdict.** In points, {said}\nand fewer of {len(worse)}; of the others no difference is seen."


def _chart(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Of each arm (calls, share that the judge passes): plain guidance as a line, the others as dots."""
    series: dict[str, list[tuple[float, float]]] = {}
    for name, said in sorted(found.items(), key=lambda item: (not item[0].startswith(PLAIN), item[1]["calls"])):
        place = (float(said["calls"]), sum(said["judge"]) / len(said["judge"]))
        series.setdefault(PLAIN if name.startswith(PLAIN) else name, []).append(place)
    return lines(series, "network calls an image", {})
