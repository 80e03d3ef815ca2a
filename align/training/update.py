"""One optimiser update over its micro-batches, the same on any number of processes.

    g = sum of grad(weight_b loss_b)  /  sum of weight_b,   both sums over rows, micro-batches and processes

and where losses are kept (`Loss.kept`), g less its part against their gradient, summed likewise (surgery.py).

A mean of micro-batch means is another number as soon as rows are dropped or shares are uneven. So every process
accumulates the gradient of its weighted SUM; gradients and weights are added over the processes, and only then divided.
A process without rows adds zeros; no forward pass carries a communication hook, so no process waits for another's.
Afterwards all hold the same gradient, and with it the same answer to whether it is finite.

A micro-batch whose loss has no graph, such as of steps that sampling.roles give to the base, adds 0, as its rows would
beside others. Where that is so of all of them, on all processes, the optimiser is not asked: weights, decay and moments
stay as they are.

A trainable whose rows are problems of their own (`rowwise`) keeps the sum: there is nothing to average, over rows or
processes, and each process moves the rows that it has computed. Only whether fp16's scale was too high they ask
together.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from align.objectives._base import Loss, Objective
from align.policy.roles import Policy
from align.policy.trainable import Trainable
from align.processes import gather_object
from align.training.memory import Shortage, shortage
from align.training.surgery import Held


class Update(NamedTuple):
    """What one update did; `metrics` are means over all rows of all processes."""

    metrics: dict[str, float]
    outcome: Literal["applied", "not finite", "overflow", "empty", "unreached"]
    """All but "applied" leave the parameters as they were, on all processes. "overflow": the fp16 scale was too high
    and has been lowered, nothing is wrong. "empty": every row has weight 0. "unreached": no row's loss depends on what
    is trained."""


def update(
    objective: Objective,
    policy: Policy,
    trainable: Trainable,
    optimiser: torch.optim.Optimizer,
    micro_batches: Sequence[Any],
    accelerator: Accelerator,
    *,
    seed: tuple[int, ...],
    max_grad_norm: float | None = None,
    scaler: Any = None,
    agree: Callable[[bool], bool] | None = None,
) -> Update:
    """One step of `optimiser` on this process's `micro_batches`.

    `seed` is (run's seed, update's number, ...): the global generator, which only dropout and users' own code draw
    from, is set from it for each micro-batch. `scaler` is a torch GradScaler for fp16. `agree` is asked after the
    micro-batches, on every process, with whether memory ran out there; where it says yes, Shortage is raised on all.
    """
    prepare = getattr(objective, "before_update", None)
    context, short = None, ""
    try:
        context = prepare(policy, micro_batches, lambda rows: _gather(rows, accelerator)) if prepare else None
    except (RuntimeError, MemoryError) as error:
        if accelerator.num_processes > 1 or not (short := shortage(error)):  # else the others wait for this one's rows
            raise
    optimiser.zero_grad(set_to_none=True)
    if short:
        raise Shortage(short)
    sums: dict[str, tuple[Tensor, int]] = {}
    held = Held(trainable.parameters())
    if scaler is not None:  # a process without rows unscales too, and has no scale before it has scaled something
        scaler.scale(torch.zeros((), device=accelerator.device))
    trainable.train(True)
    try:
        for number, batch in enumerate(micro_batches):
            torch.manual_seed(hash((*seed, number, accelerator.process_index)) % 2**63)
            loss = objective(policy, batch, context)
            weighted = (loss.weight * loss.per_sample).sum()
            with policy.backward():
                if loss.kept is not None:
                    held.add((loss.weight * loss.kept).sum(), scaler)
                if weighted.requires_grad:
                    (weighted if scaler is None else scaler.scale(weighted)).backward()
            _add(sums, loss)
    except (RuntimeError, MemoryError) as error:
        if not (short := shortage(error)):
            raise
    trainable.train(False)
    if (agree is not None and agree(bool(short))) or short:
        optimiser.zero_grad(set_to_none=True)
        raise Shortage(short or "on another process")
    if (finish := getattr(objective, "after_update", None)) is not None:
        finish(lambda rows: _gather(rows, accelerator))
    metrics, weight, reached = _means(sums, accelerator)
    if weight == 0 or not reached:
        return Update(metrics, "unreached" if weight else "empty")
    if not trainable.rowwise:
        _combine_gradients(trainable.parameters(), weight, accelerator)
    elif scaler is not None and accelerator.num_processes > 1:
        _overflow_alike(trainable.parameters(), accelerator)
    if "kept" in metrics:  # on all processes, whoever has had such rows
        metrics["kept_cosine"] = held.project(accelerator)
    if scaler is not None:
        scaler.unscale_(optimiser)
    norm = float(trainable.clip(max_grad_norm))
    finite_loss = abs(metrics["loss"]) < float("inf")  # false for nan too
    outcome = "applied" if finite_loss and norm < float("inf") else "not finite"
    if outcome == "applied":
        optimiser.step() if scaler is None else scaler.step(optimiser)
        if (settle := getattr(trainable, "settle", None)) is not None:
            settle()
    if scaler is not None:
        scaler.update()
        outcome = "overflow" if finite_loss and outcome == "not finite" else outcome
    return Update({**metrics, "grad_norm": norm}, outcome)


def _add(sums: dict[str, tuple[Tensor, int]], loss: Loss) -> None:
    """Adds a micro-batch's sums over rows: {name: (sum, number of rows)}; a metric may be of fewer rows."""
    rows = len(loss.per_sample)
    values = {name: (v.sum(), len(v)) if v.ndim else (v * rows, rows) for name, v in loss.metrics.items()}
    if loss.kept is not None:
        values["kept"] = (loss.weight * loss.kept.detach()).sum(), rows
    values["loss"] = (loss.weight * loss.per_sample.detach()).sum(), rows
    values["weight"] = loss.weight.sum(), rows
    values["reached"] = torch.tensor(float(rows if loss.per_sample.requires_grad else 0)), rows
    for name, (value, number) in values.items():
        total, count = sums.get(name, (0.0, 0))
        sums[name] = (total + value.float().to(loss.per_sample.device), count + number)  # a metric may be of the CPU


def _means(sums: dict[str, tuple[Tensor, int]], accelerator: Accelerator) -> tuple[dict[str, float], float, float]:
    """({metric: mean over all processes' rows}, the total weight, the number of rows whose loss has a graph); the loss
    is its weighted mean."""
    numbers = torch.stack([total for total, _ in sums.values()]).tolist() if sums else []
    mine = {name: (number, count) for (name, (_, count)), number in zip(sums.items(), numbers, strict=True)}
    totals: dict[str, tuple[float, int]] = {}
    for part in gather_object([mine]) if accelerator.num_processes > 1 else [mine]:
        for name, (number, count) in part.items():
            total, rows = totals.get(name, (0.0, 0))
            totals[name] = (total + number, rows + count)
    weight, _ = totals.pop("weight")
    loss, _ = totals.pop("loss")
    reached, _ = totals.pop("reached")
    means = {name: total / count for name, (total, count) in totals.items() if count}
    return {"loss": loss / weight if weight else 0.0, **means}, weight, reached


@torch.no_grad()
def _combine_gradients(parameters: list[nn.Parameter], weight: float, accelerator: Accelerator) -> None:
    """grad <- sum of the processes' grads / weight, in one message."""
    if accelerator.num_processes > 1:
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        flat: Any = accelerator.reduce(flat, reduction="sum")
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad /= weight


@torch.no_grad()
def _overflow_alike(parameters: list[nn.Parameter], accelerator: Accelerator) -> None:
    """Where a process's gradients overflowed, all do, also of one without rows: fp16's scale stays one."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    gradients = [p.grad for p in parameters if p.grad is not None]
    over: Any = torch.stack([g.isfinite().logical_not().any() for g in gradients]).any().float()
    if bool(accelerator.reduce(over[None], reduction="sum")):
        for gradient in gradients:
            gradient.fill_(float("inf"))


def _gather(rows: Tensor, accelerator: Accelerator) -> Tensor:
    """(b, ...) on each process, b may differ -> (B, ...) on all, in the order of the processes."""
    if accelerator.num_processes == 1:
        return rows
    return torch.cat([part.to(rows.device) for part in gather_object([rows.cpu()])])
