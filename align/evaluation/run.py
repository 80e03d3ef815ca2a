"""An evaluation: every arm draws the same prompts from the same noise, is judged, and is held against the baseline.

The work is cut into chunks of prompts that depend on the batch size alone. A process takes whole chunks and leaves each
in the folder when it is finished, so that the numbers do not depend on how many processes there were, nor on how often
the work was interrupted. Image k of prompt i starts from the noise of (seed, "report" or "report/k", i): with one image
a prompt these are the images of a run's own report.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from align import processes
from align.errors import UserError
from align.evaluation.arms import Arm
from align.evaluation.draw import Built, Easel
from align.evaluation.files import Chunk, Folder, Part, adapter_digest, choice, fingerprint, together
from align.evaluation.page import PAGE, page
from align.evaluation.plan import Plan
from align.evaluation.questions import Asked
from align.evaluation.results import (
    EVALUATION,
    SCORES,
    SUMMARY,
    Evaluation,
    Measured,
    against,
    asked,
    baseline,
    groups,
    scores_csv,
    summary_csv,
)
from align.evaluation.verdicts import TABLE, answered, as_csv, examined
from align.hooks._probes import SIDE
from align.interrupt import Interrupt
from align.noise.stamps import stamps
from align.registry import called
from align.training import judges
from align.versions import hardware, versions
from rewards._numerals import counted

DRIFT_PROMPTS = 8


class Session:
    """One process's part in an evaluation."""

    def __init__(self, plan: Plan, output: Path, say: Callable[[str], None], accelerator: Accelerator | None = None):
        self.plan = plan
        self.folder = Folder(output)
        self.accelerator = accelerator or processes.join(plan.recipe.train)
        self.say = say if self.accelerator.is_main_process else lambda text: None
        self.chunks = [
            Chunk(start, plan.items[start : start + plan.batch_size])
            for start in range(0, len(plan.items), plan.batch_size)
        ]
        self.judged = {
            label: fingerprint(told := config.model_dump(mode="json"), stamps(told))
            for label, config in plan.rewards.items()
        }
        judges.try_out(plan.rewards, [item.prompt for item in plan.items], self.accelerator.device)
        tree = plan.recipe.dump()
        self._weights = stamps(tree["model"]) + stamps(tree["sampling"])
        self._choices = {arm.label: choice(arm, tree) for arm in (plan.cast.baseline, *plan.cast.arms)}
        self._digests = {adapter: adapter_digest(adapter) for adapter in plan.cast.adapters}
        self.built = Built(self.accelerator)
        self.easel = Easel(plan, self.accelerator, self.built)

    def run(self, done: Callable[[str, int], None] = lambda arm, images: None) -> Evaluation | None:
        """Makes what is missing, and writes the tables; None on processes other than the main one. `done` is told of
        images as they are finished. Ctrl-C raises Interrupted between two chunks."""
        arms = [self.plan.cast.baseline, *self.plan.cast.arms]
        with Interrupt(self.accelerator) as interrupt:
            for arm in arms:
                self._make(arm, interrupt, done)
        self.accelerator.wait_for_everyone()
        if self.plan.exam is not None:
            self._examine(arms)
        if not self.accelerator.is_main_process:
            return None
        for arm in arms:
            self.folder.forget(arm, len(self.plan.items), self.plan.num_images)
        measured = [self._measured(arm) for arm in arms]
        found = self._evaluation(measured)
        self.folder.write(SCORES, scores_csv(measured, self.plan.items))
        self.folder.write(SUMMARY, summary_csv(found))
        if found.benchmark is not None:
            self.folder.write(TABLE, as_csv(found.benchmark))
        self.folder.write(EVALUATION, found.model_dump_json(indent=1) + "\n")
        self.folder.write(PAGE, page(found, measured, self.plan.items, self.folder))
        return found

    def _make(self, arm: Arm, interrupt: Interrupt, done: Callable[[str, int], None]) -> None:
        """The chunks of an arm that are not there yet."""
        self.accelerator.wait_for_everyone()
        todo = [chunk for chunk in self.chunks if not self._whole(arm, chunk)]
        self.accelerator.wait_for_everyone()  # all have looked before one of them writes
        done(arm.label, (len(self.plan.items) - sum(len(c.items) for c in todo)) * self.plan.num_images)
        rank, size = self.accelerator.process_index, self.accelerator.num_processes
        if todo:
            self.say(
                f"{arm.label}: {sum(len(c.items) for c in todo)} of {counted(len(self.plan.items), 'prompt')} to do"
            )
        for turn in range(0, len(todo), size):
            batch = todo[turn : turn + size]
            for number, chunk in enumerate(batch):
                part = self.folder.part(arm, chunk, self._key(arm, chunk), self.plan.num_images)
                noises = self.easel.noises(arm, chunk, mine=number == rank) if part is None else []
                if number == rank:
                    self._finish(arm, chunk, part, noises)
            done(arm.label, sum(len(chunk.items) for chunk in batch) * self.plan.num_images)
            interrupt.check()

    def _whole(self, arm: Arm, chunk: Chunk) -> bool:
        part = self.folder.part(arm, chunk, self._key(arm, chunk), self.plan.num_images)
        return part is not None and not self._missing(part)

    def _missing(self, part: Part) -> list[str]:
        return [label for label, key in self.judged.items() if part.judged.get(label) != key]

    def _key(self, arm: Arm, *told: Any) -> str:
        """Fingerprint of all that the images of an arm depend on."""
        tree = self.plan.recipe.dump()
        drawn = [
            tree["model"],
            self._weights,
            tree["sampling"],
            tree["train"]["seed"],
            tree["train"]["mixed_precision"],
        ]
        adapters = {self._digests[adapter]: weight for adapter, weight in arm.adapters.items()}
        if arm.negative is not None:
            drawn.append({self._digests[adapter]: weight for adapter, weight in arm.negative.items()})
        return fingerprint(drawn, adapters, self._choices[arm.label], self.plan.num_images, told)

    def _finish(self, arm: Arm, chunk: Chunk, part: Part | None, noises: list[Tensor]) -> None:
        """Draws (or reads again) the images of a chunk, and has them judged by those that have not yet."""
        count = self.plan.num_images
        if part is None:
            images = self.easel.draw(arm, chunk, noises)
            self.folder.save_images(arm, chunk, images)
            pixels = self.folder.digest(arm, chunk, count)
            part = Part(self._key(arm, chunk), _small(images).cpu(), {}, {}, pixels)
            self.folder.save_part(arm, chunk, part)  # before they are judged, which may fail
        else:
            images = self.folder.images(arm, chunk, count).to(self.accelerator.device)
        prompts = [item.prompt for item in chunk.items for _ in range(count)]
        for label in self._missing(part):
            judge = self.built({label: self.plan.rewards[label]})
            try:
                with torch.no_grad():
                    scores = judge(images.flatten(0, 1), prompts)[label]
            except ValueError as error:  # a prompt that a reward cannot take, or scores that are none
                raise UserError(f"--reward {label}: {error}") from error
            part.scores[label], part.judged[label] = scores.float().cpu().view(-1, count), self.judged[label]
            self.folder.save_part(arm, chunk, part)

    def _examine(self, arms: Sequence[Arm]) -> None:
        """The answers that are not there yet, the batches shared out among the processes."""
        assert self.plan.exam is not None
        label = next(iter(self.plan.rewards))
        for arm in arms:
            for number, chunk in enumerate(self.chunks):
                part = self.folder.part(arm, chunk, self._key(arm, chunk), self.plan.num_images)
                if number % self.accelerator.num_processes != self.accelerator.process_index or part is None:
                    continue
                name, key, asked = self._questions(arm, chunk)
                if self.folder.note(arm, name, key) is None:
                    images = self.folder.images(arm, chunk, self.plan.num_images).to(self.accelerator.device)
                    judge = self.built({label: self.plan.rewards[label]})
                    found = answered(judge, label, images, asked)
                    self.folder.keep(arm, name, key, [one.tolist() for one in found])
        self.accelerator.wait_for_everyone()

    def _questions(self, arm: Arm, chunk: Chunk) -> tuple[str, str, list[Asked]]:
        """(name of the file of answers, what they depend on, the chunk's questions)."""
        assert self.plan.exam is not None
        label = next(iter(self.plan.rewards))
        asked = [self.plan.exam.asked[index] for index in chunk.indices]
        pixels = self.folder.digest(arm, chunk, self.plan.num_images)
        return f"answers-{chunk.start:05d}", fingerprint(pixels, self.judged[label], asked), asked

    def _answers(self, arm: Arm) -> list[Tensor]:
        """(K, Q) of every prompt."""
        kept = [self.folder.note(arm, *self._questions(arm, chunk)[:2]) or [] for chunk in self.chunks]
        return [torch.tensor(one, dtype=torch.float64) for part in kept for one in part]

    def _measured(self, arm: Arm) -> Measured:
        parts = [self.folder.part(arm, c, self._key(arm, c), self.plan.num_images) for c in self.chunks]
        scores, small = together([part for part in parts if part is not None], list(self.plan.rewards))
        return Measured(arm=arm, scores=scores, small=small, drift=self._drift(arm))

    def _drift(self, arm: Arm) -> float | None:
        """Of the network from the baseline's, on a few prompts; None where both have the same weights."""
        base = self.plan.cast.baseline
        if dict(arm.adapters) == dict(base.adapters):
            return None
        prompts = [item.prompt for item in self.plan.items[:DRIFT_PROMPTS]]
        key = self._key(arm, prompts, self._key(base))
        kept = self.folder.note(arm, "drift", key)
        if kept is None:
            kept = self.easel.drift(arm, base, prompts)
            self.folder.keep(arm, "drift", key, kept)
        return float(kept)

    def _evaluation(self, measured: Sequence[Measured]) -> Evaluation:
        plan, (base, *others) = self.plan, measured
        exam = None
        if plan.exam is not None:
            answers = {one.arm.label: self._answers(one.arm) for one in others}
            exam = examined(plan.exam, next(iter(plan.rewards)), self._answers(base.arm), answers)
        sampling = plan.recipe.sampling
        return Evaluation(
            model=called(plan.recipe.model),
            sampling=f"{sampling.step_rule}, {counted(sampling.num_steps, 'step')}, {sampling.how.described()}",
            seed=plan.recipe.train.seed,
            prompts=plan.prompts,
            num_prompts=len(plan.items),
            num_distinct=len(set(asked(plan.items))),
            num_images=plan.num_images,
            categories={name: len(rows) for name, rows in groups(plan.items).items()},
            trained_on=plan.trained_on,
            seen=plan.seen,
            baseline=baseline(base, plan.items),
            arms=[against(base, one, plan.items) for one in others],
            benchmark=exam,
            num_processes=self.accelerator.num_processes,
            hardware=hardware(),
            versions=versions(),
        )


def _small(images: Tensor) -> Tensor:
    """(P, K, 3, H, W) -> the same averaged down to at most 16 x 16, as the guard's spread is measured."""
    height, width = images.shape[-2:]
    small = functional.adaptive_avg_pool2d(images.flatten(0, 1), (min(SIDE, height), min(SIDE, width)))
    return small.unflatten(0, images.shape[:2])
