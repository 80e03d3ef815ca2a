"""What an objective is: a batch in, its forward passes inside, a Loss out."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Loss(NamedTuple):
    """One micro-batch's losses (lower is better), with graph; the update's loss is sum(weight per_sample) / sum(weight)
    over all micro-batches and processes. A row that was dropped has weight 0."""

    per_sample: Tensor
    """(B,), unreduced."""
    weight: Tensor
    """(B,), no graph."""
    metrics: dict[str, Tensor]
    """Detached: (B,), (b,) for those rows that it is about, or () for the micro-batch's mean. The update reports means
    over the rows of all micro-batches."""
    kept: Tensor | None = None
    """(B,), with graph and with the same weights: a loss that the update must not raise to first order. It is not
    lowered either: all that is done is to take out of the update's gradient what is opposed to this one's."""


@dataclass(frozen=True)
class Parts:
    """What an objective may be built from: it is constructed as `Class(config, parts)`."""

    model: Any
    """The bundle: network, codec, text, grids (align.models)."""
    sampling: Any
    """The recipe's sampling block (align.sampling.SamplingConfig)."""
    rewards: Any
    """The composite of the recipe's rewards (rewards.Composite), or None where the recipe has none."""
    seed: int
    """The run's seed: with a stream's name and a global sample index it fixes every random number."""


class Move(NamedTuple):
    """One optimiser step within a round: what is moved, by which loss."""

    trainable: str
    """"default", or a name among the objective's `adapters`."""
    objective: "Objective"


class Objective(Protocol):
    """A method. Where more than the run's adapter takes part, it says so in

        adapters: {name: Trained, Snapshot or Frozen}     (align/policy/cast.py; each is a role by its own name)
        roles: {name: {adapter: weight}}                  (further roles, or "train" otherwise than {default: 1})
        moves(step) -> sequence of Move                   (the round of update number `step`, the first is 0)
        exports: str                                      (the adapter that is the result; otherwise "default")

    and is itself called only where a move names it. A round counts as one update.

    A loss may lack a graph where the steps that it trains are the base's (sampling.roles): such rows add nothing. That
    of a whole update is said at once where `same_steps: bool` says that no draw decides which steps are trained.

    An objective may also have `state_dict` / `load_state_dict`, which checkpoints then carry, and

        before_update(policy, micro_batches, gather) -> context

        after_update(gather) -> None

    which every process calls once an update, before the first of its own micro-batches and after the last one, for
    statistics over the whole update: `gather` takes (b, ...) on each process to (B, ...), in the global batch's
    order. A plan calls neither; where the first asks the network, the objective says how often:

        ahead: int      (rows of network calls for each row of an update, beyond those of a call without `context`)
    """

    def __call__(self, policy: Any, batch: Any, context: Any = None) -> Loss: ...
