"""From a recipe to a better model: what a recipe names is built here, trained, chosen, judged and written.

    run = align.train("draft/shapes", {"optim.lr": 1e-4})
    run.report.scores["clip"].difference      # on the report prompts, with its interval
    run.pipeline()("a red star").images       # a stock diffusers pipeline with the adapter

A run's folder holds recipe.yaml (resolved), metrics.jsonl, checkpoints/, adapter/ (the result), summary.json, and what
its hooks write.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import processes, sharding
from align.config import Recipe, as_yaml, load_recipe
from align.data._base import prompts_of
from align.data._datasets import pinned
from align.data._make_labels import as_labels
from align.data._readable import looked_at
from align.data._repeated import repeated
from align.data._workplace import Workplace
from align.errors import UserError
from align.figures.statistics import Comparison
from align.files import code, places
from align.hooks import metrics
from align.hooks._base import Hook, State, Surroundings
from align.interrupt import Interrupt, Interrupted
from align.objectives._base import Parts
from align.policy import adapter_file, soft_prompt
from align.policy.cast import MAIN, exported, gather, of_guidance
from align.policy.painter import Painter
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.registry import DATA, HOOKS, MODELS, OBJECTIVES, REWARDS, RewardConfig, build, called
from align.reports import page as report
from align.reports import summary
from align.reports.summary import Summary
from align.share import card
from align.share.branches import put_on
from align.share.stock import stock
from align.training import contents, evaluate, judges, optim, packages, resume
from align.training.folder import RECIPE, RunFolder
from align.training.header import header
from align.training.trainer import EXPORTS, Trainer
from rewards import CombineConfig, Composite

ADAPTER = "adapter"
RESULTS = (ADAPTER, evaluate.FOLDER, evaluate.PICTURE, report.FILE_NAME, summary.FILE_NAME)
WRITTEN = (*RESULTS, EXPORTS, "samples", metrics.FILE_NAME)


@dataclass(frozen=True)
class Run:
    """A run, by its folder."""

    output: Path
    interrupted: str | None = None
    """The signal that ended it early; the same call goes on from where it was."""

    @property
    def recipe(self) -> Recipe:
        """As it was resolved."""
        return load_recipe(self.output / RECIPE, on_disk=False)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One record an update."""
        return metrics.read(self.output / metrics.FILE_NAME)

    @property
    def report(self) -> Summary:
        """What was reached and what it cost."""
        return summary.read(self.output)

    def pipeline(self, strength: float = 1.0) -> Any:
        """A stock diffusers pipeline of the recipe's model with the run's adapter at `strength` (0 is the base). It
        draws as the run's scores were made; what a call says itself goes before."""
        tokens = (self.output / ADAPTER / soft_prompt.FILE_NAME).is_file()
        if not tokens:
            adapter_file.locate(self.output)  # a run that has not ended has none, and the base does not answer for it
        recipe = self.recipe
        model = build(MODELS, recipe.model)
        pipeline = model.to_pipeline()
        if tokens:
            pipeline.load_textual_inversion(str(self.output / ADAPTER), weight_name=soft_prompt.FILE_NAME)
        else:
            model.load_adapter(pipeline, self.output / ADAPTER, strength)
        return stock(recipe).put_on(put_on(pipeline, recipe, strength))


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    resume: str = "auto",
    **settings: Any,
) -> Run:
    """Runs a recipe (its name, path, mapping or a loaded Recipe), with `overrides` and `settings` applied, to its end.

    `settings` are overrides too: train("draft/shapes", **{"optim.lr": 1e-4}). `resume` is "auto" (go on from the newest
    checkpoint in the recipe's output, if there is one), "never" (start over), or the path of a checkpoint. SIGINT and
    SIGTERM end the run after its update, with a checkpoint.
    """
    loaded = load_recipe(recipe, overrides)
    return _Session(load_recipe(loaded, settings) if settings else loaded).run(resume)


def prepare(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    pairs_only: bool = False,
    threshold: float | str | None = None,
) -> Path:
    """Makes the pairs or labels that a recipe trains on, and unless `pairs_only` its cache of latents and embeddings;
    returns their folder. Ended early, the same call goes on. `threshold`: make labels, also of a recipe of pairs."""
    loaded = load_recipe(recipe, overrides)
    if threshold is not None:
        data = as_labels(loaded.dump()["data"], threshold)
        loaded = load_recipe({**loaded.dump(), "data": data, "objective": {"name": "kto"}})
    return _Session(loaded).prepare(pairs_only=pairs_only)


class _Session:
    """One process's part in a run."""

    def __init__(self, recipe: Recipe):
        if getattr(recipe.objective, "trains", "adapter") != "adapter":
            raise UserError(
                "objective: this one optimises the noise of single images and leaves no adapter behind. Run align reno "
                "--recipe with this recipe."
            )
        self.recipe = recipe.model_copy(update={"data": pinned(recipe.data)})
        self.output = Path(recipe.output).expanduser()
        self.folder = RunFolder(self.output)
        self.accelerator = processes.join(recipe.train, cuts=True)
        asked, found = recipe.train.num_processes, self.accelerator.num_processes
        if asked not in (None, found):
            raise UserError(
                f"train.num_processes={asked}, but {found} started: the launcher did not do what was asked of it. On "
                f"CPU use ACCELERATE_USE_CPU=1 torchrun --nproc_per_node {asked} -m align train RECIPE."
            )

    def run(self, resume_from: str) -> Run:
        """The whole run, in a folder that no other process works in meanwhile."""
        with sharding.released(), self.folder if self.accelerator.is_main_process else nullcontext():
            return self._run(resume_from)

    def _run(self, resume_from: str) -> Run:
        recipe, accelerator, seed = self.recipe, self.accelerator, self.recipe.train.seed
        packages.refuse(recipe)
        settings = places.whole(code.told(recipe.dump()))
        named = contents.of_recipe(recipe)
        if recipe.adapter.dropout:
            named["the number of processes, for which adapter.dropout draws its masks"] = str(accelerator.num_processes)
        checkpoint = resume.find(self.output, resume_from, settings, self.say, named)
        self.folder.keeps(checkpoint, resume_from, RESULTS, WRITTEN)
        batches = repeated(build(DATA, recipe.data, batch_size=recipe.train.batch_size, seed=seed), recipe.sampling)
        looked_at(batches, recipe)
        rewards = self._composite(recipe.rewards, recipe.combine) if recipe.rewards else None
        if rewards is not None:
            rewards.try_out(prompts_of(batches), accelerator.device)
        judges.try_all(recipe, accelerator.device)
        self.say(f"loads {called(recipe.model)}")  # what takes longest comes after what is more often wrong
        policy = self._policy()
        model, adapter = policy.model, policy.adapter
        objective = build(OBJECTIVES, recipe.objective, Parts(model, recipe.sampling, rewards, seed))
        cast = gather(policy, objective, of_guidance(recipe))
        processes.cut(model.network, recipe, accelerator)
        trainable, result = getattr(objective, "trainable", adapter), exported(policy, objective)
        if getattr(recipe.objective, "few_step", False):
            result.said[adapter_file.SAMPLING_KEY] = json.dumps(recipe.sampling.of_images(), sort_keys=True)
        painter = Painter(policy, recipe.sampling, accelerator, seed=seed)
        for block in (recipe.sampling, recipe.evaluate and recipe.evaluate.sampling):
            if block is not None:
                block.grid(model)  # a size or times that the model has not are refused before anything is written
        said = header(recipe, model, trainable, accelerator)
        for note in (*said, *getattr(objective, "notes", ()), optim.note(recipe.optim, recipe.train.num_updates)):
            if note:
                self.say(note)
        if hasattr(batches, "prepare"):
            batches.prepare(Workplace(painter, rewards, self._composite, self.say, getattr(objective, "wanted", None)))
        named |= batches.contents() if hasattr(batches, "contents") else {}
        if checkpoint is not None:
            resume.same_contents(checkpoint, resume.meta(checkpoint), named)
        around = Surroundings(self.output, accelerator, result, painter, self._composite, settings, seed)
        hooks = [build(HOOKS, config, around) for config in recipe.hooks.values()]
        told: dict[str, Any] = {"recipe": settings, "contents": named, "say": self.say}
        trainer = Trainer(recipe.train, recipe.optim, accelerator, self.output, **told)
        self._open_folder(fresh=checkpoint is None)  # everything is built: what cannot be leaves no folder behind
        state = trainer.fit(objective, policy, trainable, batches, hooks, cast=cast, result=result, resume=checkpoint)
        again = "the same command" + {"auto": "", "never": " without --resume"}.get(resume_from, " with --resume auto")
        if state.interrupted:
            self.say(f"{state.interrupted}: ended after update {state.step}; {again} goes on from there")
            return Run(self.output, state.interrupted)
        with nullcontext() if state.chosen else state.average():
            if state.chosen:
                result.load_state_dict(state.chosen.tensors)
            if accelerator.is_main_process:
                result.export(self.output / ADAPTER)
            try:
                findings = self._conclude(hooks, state)
                strength = summary.recommended_strength(findings)
                scaled = getattr(result, "scaled", None) if strength != 1 else None
                with scaled(strength) if scaled else nullcontext():  # what the card loads is what is reported
                    seen = summary.seen(recipe, prompts_of(batches))
                    scores = self._evaluate(policy, rewards, seen)
            except Interrupted as signal:
                self.say(f"{signal}: training is done and saved; {again} goes on with the report")
                return Run(self.output, str(signal))
        self._summarise(policy, scores, findings, state, {"adapters": cast.described(), "report_seen": seen})
        return Run(self.output)

    def prepare(self, *, pairs_only: bool) -> Path:
        """What `run` does before its first update where the data are pairs; see align/commands/preferences.py."""
        recipe = self.recipe
        batches = build(DATA, recipe.data, batch_size=recipe.train.batch_size, seed=recipe.train.seed)
        if not isinstance(getattr(batches, "folder", None), Path) or (pairs_only and batches.config.make is None):
            missing = "make: {prompts: ..., rewards: ...}" if pairs_only else "pairs: FOLDER"
            raise UserError(
                f"data: there are no pairs to prepare, and no labels. Set `data: {{name: preferences, {missing}}}`."
            )
        policy = self._policy()
        gather(policy, None, of_guidance(recipe))
        processes.cut(policy.model.network, recipe, self.accelerator)
        painter = Painter(policy, recipe.sampling, self.accelerator, seed=recipe.train.seed)
        (batches.make if pairs_only else batches.prepare)(Workplace(painter, None, self._composite, self.say))
        return batches.folder

    def _policy(self) -> Policy:
        recipe, device = self.recipe, self.accelerator.device
        model = build(MODELS, recipe.model)
        model.to(device, but=model.network if processes.shares(recipe, self.accelerator) else None)
        component = next(name for name, module in model.components().items() if module is model.network)
        told = {"component": component, "seed": recipe.train.seed, "name": getattr(recipe.objective, "train", MAIN)}
        adapter = Adapter(recipe.adapter, model.network, list(model.lora_targets), **told)
        if recipe.train.compile:
            model.compile()
        return Policy(model, adapter, lambda: recipe.train.autocast(device), recipe.train.compile)

    def say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            print(text, flush=True)

    def _composite(self, configs: Mapping[str, RewardConfig], combine: CombineConfig | None = None) -> Composite:
        return self._together({label: build(REWARDS, config) for label, config in configs.items()}, combine)

    def _together(self, rewards: Mapping[str, Any], combine: CombineConfig | None = None) -> Composite:
        return Composite(rewards, combine).to(self.accelerator.device)

    def _open_folder(self, *, fresh: bool) -> None:
        if self.accelerator.is_main_process:
            tree = self.recipe.dump()
            self.folder.open(tree, as_yaml(places.whole(code.told(tree))), fresh=fresh, written=WRITTEN)
        self.accelerator.wait_for_everyone()

    def _conclude(self, hooks: Sequence[Hook], state: State) -> dict[str, dict[str, Any]]:
        """{label of a hook: what it concluded}."""
        with Interrupt(self.accelerator) as interrupt:
            concluded = []
            for hook in hooks:
                if hook.last:
                    self.say(hook.last)
                concluded.append(hook.conclude(state, interrupt.check))
        return {label: found for label, found in zip(self.recipe.hooks, concluded, strict=True) if found}

    def _evaluate(self, policy: Policy, rewards: Composite | None, seen: Mapping[str, int]) -> dict[str, Comparison]:
        config = self.recipe.evaluate
        if config is None:
            return {}
        trained = dict(rewards.rewards.items()) if rewards else {}
        watched = {k: build(REWARDS, v) for k, v in config.rewards.items() if k not in trained}
        judges = self._together({**trained, **watched})
        sampling = config.sampling or self.recipe.sampling
        painter = Painter(policy, sampling, self.accelerator, seed=self.recipe.train.seed, batch_size=config.batch_size)
        self.say(f"report: {evaluate.asked(config)} {summary.held_out(seen)}, before and after")
        with Interrupt(self.accelerator) as interrupt:
            return evaluate.evaluate(config, painter, judges, self.output, poll=interrupt.check)

    def _summarise(
        self,
        policy: Policy,
        scores: dict[str, Comparison],
        findings: dict[str, dict[str, Any]],
        state: State,
        more: dict[str, Any],
    ) -> None:
        calls = policy.calls.over_processes(self.accelerator)
        if self.accelerator.is_main_process:
            number = self.accelerator.num_processes
            written = summary.write(self.output, self.recipe, state, scores, findings, calls, number, **more)
            card.write(self.output / ADAPTER, self.recipe, written)
            report.write(self.output)
            for line in summary.lines(written, self.output):
                self.say(line)
        self.accelerator.wait_for_everyone()
