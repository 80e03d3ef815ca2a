"""Updates that changed nothing, counted by why, and the end of a run that goes on without learning.

A few are part of training: a batch whose rows were all dropped, fp16's search for its scale. So many in a row, or a
whole run of them, are a mistake that the record would show only to who reads it.
"""

from collections.abc import Mapping
from typing import Any

from align.errors import UserError
from align.training.update import Update

OVERFLOWS = 25
"""In a row: each halves fp16's scale, which begins at 2^16."""
EMPTY = 20
"""In a row."""
UNREACHED = 8
"""In a row, before the first that had a graph: a draw may miss what is trained, but not as often."""
NO_GRAPH = (
    "the loss depends on nothing that is trained: no step that carries its gradient is the policy's. Widen "
    "sampling.last_k or the window, or let sampling.roles give these steps to train."
)
CULPRIT = "gradient_not_finite/"
"""Metric of a reward (rewards/_composite.py): the share of images at which its gradient is no number."""


class Failures:
    """Watches the outcomes of a run's updates; raises UserError with the cause. Alike on all processes."""

    def __init__(self, most: int):
        self.most = most
        self.counts = {"not finite": 0, "overflow": 0, "empty": 0, "unreached": 0}
        """In a row, since the last update that was applied; unreached ones since the last whose loss had a graph."""
        self.learnt = 0
        """Updates with a gradient above 0 that were applied."""

    def watch(
        self, done: Update, step: int, *, scale: float | None, why_empty: str | None, same_steps: bool = False
    ) -> None:
        """After update number `step`; `scale` is fp16's, `why_empty` what the data say of rows that were dropped,
        `same_steps` whether all updates train the same ones."""
        if done.outcome == "applied":
            self.counts = dict.fromkeys(self.counts, 0)
            self.learnt += done.metrics["grad_norm"] > 0
            return
        named = done.outcome == "overflow" and bool(_named(done.metrics))  # a reward's gradient is taken in float32
        outcome = "not finite" if named else done.outcome
        self.counts[outcome] += 1
        number = self.counts[outcome]
        if outcome in ("not finite", "overflow"):
            self.counts["unreached"] = 0
        if outcome == "unreached" and not self.learnt and (same_steps or number == UNREACHED):
            raise UserError(f"train: {NO_GRAPH}")
        if outcome == "not finite":
            self._not_finite(done.metrics, number, step)
        if outcome == "overflow" and ((scale is not None and scale < 1) or number >= OVERFLOWS):
            raise UserError(
                f"train: fp16's gradient was not finite in {number} updates in a row, up to update {step}, while the "
                f"loss was {done.metrics['loss']:.4g}, and the scale is down to {scale:.3g}: it is no overflow, the "
                "gradient itself is no number. Set train.mixed_precision=bf16 or no; checkpoints before it are kept."
            )
        if outcome == "empty" and number == EMPTY:
            raise UserError(f"train: {number} updates in a row, up to update {step}, {_empty(why_empty)}")

    def finish(self, num_updates: int, why_empty: str | None) -> None:
        """After the last of the recipe's updates: one at least must have moved something."""
        if self.learnt:
            return
        if self.counts["unreached"]:
            raise UserError(f"train: {NO_GRAPH}")
        if self.counts["empty"]:
            raise UserError(f"train: all {num_updates} updates {_empty(why_empty)}")
        raise UserError(
            f"train: nothing was learnt: no update of {num_updates} had a finite gradient above 0. Look at loss and "
            "grad_norm in metrics.jsonl: a reward that is constant, a margin that every image has reached, or pairs of "
            "equal images have none; fp16 that found no scale has none that is finite."
        )

    def _not_finite(self, metrics: Mapping[str, float], number: int, step: int) -> None:
        if culprit := _named(metrics):
            if step == 1 or number == self.most:
                raise UserError(f"train: update {step} has no gradient:{culprit}")
        elif number == self.most:
            raise UserError(
                f"train: the gradient was not finite in {number} updates in a row, up to update {step} (loss "
                f"{metrics['loss']}): the run has diverged. Lower optim.lr or train.max_grad_norm, or keep fewer "
                "steps in the gradient; the checkpoints before it are kept."
            )

    def state_dict(self) -> dict[str, Any]:
        return {"counts": dict(self.counts), "learnt": self.learnt}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts, self.learnt = self.counts | state["counts"], state["learnt"]


def _named(metrics: Mapping[str, float]) -> str:
    """The rewards whose gradient was no number."""
    found = {name.removeprefix(CULPRIT): share for name, share in metrics.items() if name.startswith(CULPRIT)}
    told = [f"{label} (at {share:.0%} of the images)" for label, share in found.items() if share > 0]
    if not told:
        return ""
    return (
        f" the score of reward {', '.join(told)} is finite and its gradient is not: a root, a quotient or a logarithm "
        "of 0 in it. Add a small number under the root, or clamp its argument."
    )


def _empty(why: str | None) -> str:
    return f"trained on nothing: every row was dropped. {why or 'Look at what the data leave out.'}"
