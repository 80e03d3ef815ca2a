"""One method on one seed: what an update costs, as many updates as the budget pays, and the scores then.

    forward-equivalents = network rows + c_decode decoded images + c_reward scored images

each counted 1 for a forward, 1 for what is recomputed and 2 for a backward pass; c is the number of floating-point
operations of decoding or scoring one image over those of one network forward of one row. Wall-clock is the time within
updates, without loading, measuring and reporting.
"""

import json
import shutil
import statistics
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

import align
from align.config import Recipe, load_recipe
from align.data._base import micro_batches
from align.data._workplace import Workplace
from align.data.prompts import load_prompts
from align.models._step_aware import StepAwareClip
from align.objectives._base import Parts
from align.policy.painter import Painter
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.registry import DATA, MODELS, OBJECTIVES, REWARDS, build
from align.run import Run
from rewards import Composite
from scripts.comparison.counting import counted, operations
from scripts.comparison.methods import FIRST, METHODS, Method

TRIAL = 6  # updates from which the cost of one is measured
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25)
COLUMNS = ("wall-clock", "forward-equivalents")
PROMPTS = "shapes:report"
JUDGES: dict[str, dict[str, Any]] = {
    "gold": {"name": "gold"},
    "judge_graded": {"name": "judge_graded"},
    "judge": {"name": "judge"},
    "pick": {"name": "clip", "model": "embedded:shapes-pick", "form": "logit"},
    "clip": {"name": "clip", "model": "embedded:shapes-clip"},
}


class Bench:
    """Runs in `output`/METHOD/seed-N, the cost of an update in `output`/METHOD/cost.json, scores of the base model in
    `output`/base."""

    def __init__(self, output: Path, *, num_prompts: int = 384, updates: int | None = None):
        self.output = output
        self.num_prompts = num_prompts
        self.updates = updates

    def measure(self, name: str, method: Method, seed: int) -> None:
        folder = self.output / name / f"seed-{seed}"
        budget = self.budget()
        if not method.trained:
            self._best_of(folder, name, method, seed, budget)
            return
        cost = self.cost(name, method)
        lengths = {column: max(1, round(budget[column] / cost[column])) for column in COLUMNS}
        for column, length in sorted(lengths.items(), key=lambda item: item[1]):
            if (folder / f"{column}.json").is_file():
                continue
            changes = (*self._common(seed), f"train.num_updates={length}", f"output={folder / 'run'}")
            run = align.train(method.recipe, (*method.changes, *changes))
            if run.interrupted:
                raise SystemExit(130)
            self._keep(folder, column, method, seed, run, length)

    def budget(self) -> dict[str, float]:
        """Seconds and forward-equivalents that every method may spend."""
        first = METHODS[FIRST]
        updates = self.updates or load_recipe(first.recipe, first.changes).train.num_updates
        return {column: updates * self.cost(FIRST, first)[column] for column in COLUMNS}

    def cost(self, name: str, method: Method) -> dict[str, float]:
        """Seconds and forward-equivalents of one update, or of one image to choose among; measured once."""
        path = self.output / name / "cost.json"
        if not path.is_file() and not method.trained:
            _dump(path, self._cost_of_candidate(method))
        elif not path.is_file():
            trial = self.output / name / "trial"
            changes = (*self._common(0), f"train.num_updates={TRIAL}", f"output={trial}")
            with counted() as rows:
                run = align.train(method.recipe, (*method.changes, *changes), resume="never")
            unit = self._units(method)
            spent = run.report.forward_equivalents + rows["decode"] * unit["decode"] + rows["reward"] * unit["reward"]
            seconds = sorted(record["seconds"] for record in run.metrics)[TRIAL // 2]
            _dump(path, {"wall-clock": seconds, "forward-equivalents": spent / TRIAL})
            shutil.rmtree(run.output)
        return json.loads(path.read_text())

    def variance(self, name: str, method: Method, *, batches: int, rows: int) -> None:
        """Norm, variance and squared mean of a batch's gradient at the fresh adapter, where that of A is zero."""
        path = self.output / name / "variance.json"
        if path.is_file():
            return
        recipe = load_recipe(method.recipe, (*method.changes, f"train.batch_size={rows}"))
        policy, objective, source = _parts(recipe, seed=0)
        found, stream = [], iter(source)
        for _ in range(batches):
            (batch,) = micro_batches(next(stream), None)
            loss = objective(policy, batch).per_sample.mean()
            gradients = torch.autograd.grad(loss, policy.adapter.parameters())
            found.append(torch.cat([g.flatten() for g in gradients]).double())
        products = torch.stack(found) @ torch.stack(found).T  # (batches, batches)
        off = products - products.diag().diag()
        signal = float(off.sum()) / (batches * (batches - 1))  # of |E g|^2, unbiased
        without = (off.sum() - 2 * off.sum(1)) / ((batches - 1) * (batches - 2))  # each batch left out in turn
        error = float(((without - without.mean()).square().sum() * (batches - 1) / batches).sqrt())  # jackknife
        squares = float(products.diag().mean())
        _dump(path, {
            "norm": squares**0.5, "variance": squares - signal, "signal": signal, "signal_error": error,
            "batches": batches, "rows": rows,
        })  # fmt: skip

    def sweep(self, name: str, method: Method, seed: int) -> None:
        """Mean gains of the trained adapter at each of STRENGTHS."""
        folder = self.output / name / f"seed-{seed}"
        if (folder / "sweep.json").is_file() or not (folder / "run" / "adapter").is_dir():
            return
        painter = self.trained(method, seed, folder / "run")
        before, gains = self._base(painter), {}
        for strength in STRENGTHS:
            with painter.policy.adapter.scaled(strength):
                after = _judged(painter, "train", self.prompts())
            gains[f"{strength:g}"] = {k: statistics.fmean(after[k]) - statistics.fmean(before[k]) for k in after}
        _dump(folder / "sweep.json", gains)

    @torch.no_grad()
    def _best_of(self, folder: Path, name: str, method: Method, seed: int, budget: dict[str, float]) -> None:
        painter, trained = self._candidates(method, seed)
        prompts, each = self.prompts(), self.cost(name, method)
        numbers = {column: max(1, round(budget[column] / each[column] / self.num_prompts)) for column in COLUMNS}
        for column, number in numbers.items():
            if not (folder / f"{column}.json").is_file():
                scores = {"before": self._base(painter), "after": _best(painter, prompts, trained, number)}
                _dump(folder / f"{column}.json", {"updates": number, "scores": scores, "curve": []})

    @torch.no_grad()
    def _cost_of_candidate(self, method: Method) -> dict[str, float]:
        """Seconds and forward-equivalents of one image and its score."""
        (painter, trained), prompts = self._candidates(method, 0), self.prompts()[:32]
        with FlopCounterMode(display=False) as counter:
            painter.score("reference", prompts, trained, stream="report")
        began = time.perf_counter()
        painter.score("reference", prompts, trained, stream="report")
        spent = {"wall-clock": time.perf_counter() - began}
        spent["forward-equivalents"] = counter.get_total_flops() / self._units(method)["network"]
        return {column: value / len(prompts) for column, value in spent.items()}

    def _candidates(self, method: Method, seed: int) -> tuple[Painter, Composite]:
        """What draws them, and what chooses among them."""
        recipe = load_recipe(method.recipe, (*method.changes, *self._common(seed)))
        return self._painter(recipe, seed), composite(recipe.rewards)

    def prompts(self) -> list[str]:
        """Those that every method is reported on."""
        return load_prompts(PROMPTS, count=self.num_prompts, key="compare")

    def _painter(self, recipe: Recipe, seed: int) -> Painter:
        """Paints for all methods alike: ten DDIM steps and guidance 2 on the shapes world, as the first recipe says."""
        first = METHODS[FIRST]
        sampling = load_recipe(first.recipe, first.changes).sampling
        return Painter(_policy(recipe, seed), sampling, Accelerator(cpu=True), seed=seed)

    def trained(self, method: Method, seed: int, run: Path) -> Painter:
        return self._painter(load_recipe(method.recipe, (*method.changes, f"adapter.init={run / 'adapter'}")), seed)

    def _base(self, painter: Painter) -> dict[str, list[float]]:
        """Scores of the base model on the report prompts at this seed, for every method."""
        path = self.output / "base" / f"{painter.seed}.json"
        if not path.is_file():
            _dump(path, _judged(painter, "reference", self.prompts()))
        scores: dict[str, list[float]] = json.loads(path.read_text())
        return scores

    def _units(self, method: Method) -> dict[str, float]:
        """Operations of decoding and of scoring one image, each over those of one network forward of one row; under
        "network" the latter themselves."""
        recipe = load_recipe(method.recipe, method.changes)
        model = build(MODELS, recipe.model)
        cond, t = model.text.encode(["a red circle"]), torch.tensor(0.5, dtype=torch.float64)
        x = torch.zeros(1, *model.latent_shape(recipe.sampling.image_size))
        image = model.codec.decode(x)
        network = operations(lambda: model.denoiser()(x, t, cond))
        units = {"network": network, "decode": operations(lambda: model.codec.decode(x)) / network, "reward": 0.0}
        spm = getattr(recipe.data, "spm", None)
        if spm is not None or recipe.rewards:
            judge = composite(recipe.rewards) if spm is None else partial(StepAwareClip.load(spm), t=torch.zeros(1))
            judge(image, ["a red circle"])  # prompts are encoded once
            units["reward"] = operations(lambda: judge(image, ["a red circle"])) / network
        return units

    def _common(self, seed: int) -> tuple[str, ...]:
        """The same for all: the seed, no hooks that measure or stop; what is reported is measured here."""
        return (f"train.seed={seed}", "hooks={}", "evaluate=null", "train.keep_checkpoints=1")

    def _keep(self, folder: Path, column: str, method: Method, seed: int, run: Run, length: int) -> None:
        painter = self.trained(method, seed, run.output)
        scores = {"before": self._base(painter), "after": _judged(painter, "train", self.prompts())}
        seconds, curve = 0.0, []
        for record in run.metrics:
            seconds += record["seconds"]
            curve.append([record["step"], seconds, record.get("reward/total"), record["grad_norm"]])
        _dump(folder / f"{column}.json", {"updates": length, "scores": scores, "curve": curve})


def _policy(recipe: Recipe, seed: int) -> Policy:
    model = build(MODELS, recipe.model)
    told = {"component": model.network_name, "seed": seed}
    return Policy(model, Adapter(recipe.adapter, model.network, list(model.lora_targets), **told))


def _parts(recipe: Recipe, *, seed: int) -> tuple[Policy, Any, Any]:
    policy = _policy(recipe, seed)
    rewards = composite(recipe.rewards, recipe.combine) if recipe.rewards else None
    objective = build(OBJECTIVES, recipe.objective, Parts(policy.model, recipe.sampling, rewards, seed))
    source = build(DATA, recipe.data, batch_size=recipe.train.batch_size, seed=seed)
    if hasattr(source, "prepare"):
        painter = Painter(policy, recipe.sampling, Accelerator(cpu=True), seed=seed)
        source.prepare(Workplace(painter, rewards, composite, print))
    return policy, objective, source


def composite(configs: Mapping[str, Any], *combine: Any) -> Composite:
    return Composite({label: build(REWARDS, config) for label, config in configs.items()}, *combine)


def judges() -> Composite:
    return Composite({label: build(REWARDS, REWARDS.config_class(c["name"])(**c)) for label, c in JUDGES.items()})


def _judged(painter: Painter, role: str, prompts: list[str]) -> dict[str, list[float]]:
    scores, _ = painter.score(role, prompts, judges(), stream="report")
    return {label: values.tolist() for label, values in scores.items()}


def _best(painter: Painter, prompts: list[str], trained: Composite, number: int) -> dict[str, list[float]]:
    """Scores of the best of `number` noises by the trained rewards."""
    watching, scores = judges(), {label: [] for label in JUDGES}
    for start in range(0, len(prompts), painter.batch_size):
        rows = list(range(start, min(start + painter.batch_size, len(prompts))))
        chosen = [prompts[i] for i in rows]
        images = painter.images("reference", chosen, rows, "report")
        total = trained.combine(trained(images, chosen))
        for candidate in range(1, number):
            others = painter.images("reference", chosen, rows, f"candidate/{candidate}")
            score = trained.combine(trained(others, chosen))
            images = torch.where((score > total)[:, None, None, None], others, images)
            total = torch.maximum(score, total)
        for label, values in watching(images, chosen).items():
            scores[label].extend(values.tolist())
    return scores


def _dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".writing")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)
