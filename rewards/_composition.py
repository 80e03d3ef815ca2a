"""What detections say about demands: counts and places, softly, and GenEval's own verdict.

Of one kind of object let l_q be the logit of box q and b its threshold (a probability). Then

    w_q = sigmoid((l_q - logit(b)) / T) * prod over j of (1 - w_j)    j: likelier boxes, overlapping q by more than half
    N   = sum_q w_q                                                   the soft count
    c   = sum_q w_q centre_q / N                                      the soft place

so that two boxes on one object count once. With n the number that is asked for, in [0, 1] each:

    at least n        min(N / n, 1)
    less than m       1 / (1 + (2 max(N - (m - 1), 0))^2)
    n of a colour     min(sum_q w_q p_q(colour) / n, 1)
    left of etc.      sigmoid((d - 0.5) / 0.2) min(N_a, 1) min(N_b, 1),   d = (offset - 0.1 (sizes)) / |offset|

along the relation's axis; d > 0.5 is GenEval's rule, whose verdict is taken of all boxes above the threshold.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rewards._demands import Clause, Demands

SHARPNESS = 0.5  # T, in logits
OVERLAP = 0.5  # intersection over union
MOST = 64  # boxes that are looked at, the likeliest
MARGIN, CONE, SOFTNESS = 0.1, 0.5, 0.2  # GenEval's position_threshold and 0.5; T of the relation
MAX_OBJECTS = 16  # GenEval's
AXES = {"left of": (-1.0, 0.0), "right of": (1.0, 0.0), "above": (0.0, -1.0), "below": (0.0, 1.0)}


class Found(NamedTuple):
    """The boxes of one kind of object in one image, the likeliest first."""

    logits: Tensor
    """(Q,)"""
    boxes: Tensor
    """(Q, 4): x0, y0, x1, y1 in pixels."""
    colours: Tensor | None = None
    """(K, 10): of the first K boxes, the probability of each of GenEval's colours."""
    order: Tensor | None = None
    """(Q,): which of the network's boxes they are."""


class Check(NamedTuple):
    """One demand: what, and how far it is met."""

    what: str
    value: Tensor
    """In [0, 1], without dimensions."""


def ordered(logits: Tensor, boxes: Tensor) -> Found:
    """The likeliest boxes, sorted; the order itself has no gradient."""
    order = logits.detach().argsort(descending=True, stable=True)[:MOST]
    return Found(logits[order], boxes[order], order=order)


def weights(found: Found, threshold: float) -> Tensor:
    """(Q,): how much each box counts, in [0, 1]."""
    above = torch.sigmoid((found.logits - _logit(threshold)) / SHARPNESS)
    overlapping = (overlaps(found.boxes.detach()) > OVERLAP).tril(-1)
    kept: list[Tensor] = []
    for row, own in enumerate(above):
        rivals = [kept[j] for j in overlapping[row].nonzero().flatten().tolist()]
        kept.append(own * torch.stack([1 - rival for rival in rivals]).prod() if rivals else own)
    return torch.stack(kept) if kept else above


def overlaps(boxes: Tensor) -> Tensor:
    """(Q, 4) -> intersection over union (Q, Q)."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1)
    return both / (area[:, None] + area[None, :] - both).clamp(min=1e-9)


def soft_checks(demands: Demands, found: Mapping[str, Found], threshold: float) -> list[Check]:
    """Every demand of an image, softly."""
    from rewards._demands import COLOURS

    weight = {name: weights(one, threshold) for name, one in found.items()}
    count = {name: w.sum() for name, w in weight.items()}
    checks = []
    for clause in demands.include:
        name, number = clause.name, clause.count
        checks.append(Check(f"{number} {name}", (count[name] / number).clamp(max=1)))
        if clause.colour is not None:
            colours = found[name].colours
            assert colours is not None
            seen = (weight[name][: len(colours)] * colours[:, COLOURS.index(clause.colour)]).sum()
            checks.append(Check(f"{clause.colour} {name}", (seen / number).clamp(max=1)))
        if clause.relation is not None:
            other = demands.include[clause.target].name
            near = _near(found[name], weight[name]), _near(found[other], weight[other])
            held = torch.sigmoid((_along(clause.relation, *near) - CONE) / SOFTNESS)
            there = count[name].clamp(max=1) * count[other].clamp(max=1)
            checks.append(Check(f"{name} {clause.relation} {other}", held * there))
    for clause in demands.exclude:
        over = (count[clause.name] - (clause.count - 1)).clamp(min=0)
        checks.append(Check(f"fewer than {clause.count} {clause.name}", 1 / (1 + 4 * over**2)))
    return checks


def _near(found: Found, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(centre (2,), size (2,)) of what is seen, averaged by its weight."""
    share = (weight / weight.sum().clamp(min=1e-6))[:, None]
    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    return (share * (low + high) / 2).sum(0), (share * (high - low)).sum(0).abs()


def _along(relation: str, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """The part of the offset from b to a along the relation's axis beyond what their sizes take, over its length."""
    offset, axis = a[0] - b[0], a[0].new_tensor(AXES[relation])
    free = (offset * axis).sum() - MARGIN * ((a[1] + b[1]) * axis.abs()).sum()
    return free / offset.square().sum().clamp(min=1e-12).sqrt()


def verdict(demands: Demands, found: Mapping[str, Found], threshold: float) -> list[tuple[str, bool]]:
    """GenEval's own checks (evaluate_images.py), on boxes above the threshold, the most confident ones of each kind."""
    from rewards._demands import COLOURS

    seen = {name: int((one.logits > _logit(threshold)).sum()) for name, one in found.items()}
    seen = {name: min(number, MAX_OBJECTS) for name, number in seen.items()}
    matched: list[Tensor | None] = []
    checks = []
    for clause in demands.include:
        boxes = found[clause.name].boxes[: min(seen[clause.name], clause.count)]
        met = len(boxes) >= clause.count
        checks.append((f"{clause.count} {clause.name}", met))
        if clause.colour is not None:
            colours = found[clause.name].colours
            named = [] if colours is None else colours[: clause.count].argmax(1).tolist()
            right = met and named.count(COLOURS.index(clause.colour)) >= clause.count
            checks.append((f"{clause.colour} {clause.name}", right))
            met = met and right
        if clause.relation is not None:
            target = matched[clause.target]
            held = met and target is not None and _all_related(clause, boxes, target)
            checks.append((f"{clause.name} {clause.relation} {demands.include[clause.target].name}", held))
            met = met and held
        matched.append(boxes if met else None)
    checks += [(f"fewer than {c.count} {c.name}", seen[c.name] < c.count) for c in demands.exclude]
    return checks


def _all_related(clause: Clause, boxes: Tensor, target: Tensor) -> bool:
    assert clause.relation is not None
    ones = torch.ones(1)
    pairs = [(a, b) for a in boxes for b in target]
    return all(
        bool(_along(clause.relation, _near(_one(a), ones.to(a)), _near(_one(b), ones.to(b))) > CONE) for a, b in pairs
    )


def _one(box: Tensor) -> Found:
    return Found(box.new_zeros(1), box[None])


def _logit(probability: float) -> float:
    return float(torch.logit(torch.tensor(probability, dtype=torch.float64)))


def mean(checks: Sequence[Check], least: float | None = None) -> Tensor:
    """The mean of the checks, or of their logarithms, none below log `least`."""
    values = torch.stack([check.value for check in checks])
    return values.mean() if least is None else values.clamp(min=least).log().mean()
