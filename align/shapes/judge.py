"""The judge: from pixels and a caption to verdicts, without learning and without chance.

Reading a picture: the background is a plane of grey fitted to the pixels without colour; what differs from it is
foreground; its connected parts are objects. An object's colour is the hue nearest to most of its pixels, its radius
that of a circle of its area, its shape the one whose exact coverage at the same centre and area overlaps it best.
Judging: the objects are assigned to what the caption asks for so that most of it is met, shapes first.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from align.shapes.captions import Item, Requirement, parse
from align.shapes.scene import COLOURS, SHAPES, SIZE_BORDER, colour_of, coverage

_FOREGROUND = 0.16  # least distance from the background, in [0, 1] RGB
_LEAST_AREA = 8.0  # pixels; a smaller speck is no object but spoils nothing unless it is above _SPECK
_SPECK = 3.0
_PURE = 0.6  # share of an object's pixels that must agree on its colour
_OVERLAP = 0.62  # least soft overlap (intersection over union) with an exact shape
_CONE = 0.5  # least share of the distance that must lie along the axis of a relation (GenEval's rule)
_NEAR = 3.0  # pixels along that axis below which no relation holds


@dataclass(frozen=True)
class Seen:
    """An object as read from pixels. shape or colour is None where nothing fits."""

    shape: str | None
    colour: str | None
    x: float
    y: float
    radius: float
    saturation: float
    mask: np.ndarray

    @property
    def size(self) -> str:
        return "large" if self.radius > SIZE_BORDER else "small"


@dataclass(frozen=True)
class Reading:
    """What a picture shows: its objects, and the change of the background's grey level across it."""

    objects: tuple[Seen, ...]
    light: float


@dataclass(frozen=True)
class Verdict:
    """Per requirement of a caption, in a fixed order: (what, met)."""

    checks: tuple[tuple[str, bool], ...]

    @property
    def strict(self) -> bool:
        return all(ok for _, ok in self.checks)

    @property
    def graded(self) -> float:
        return sum(ok for _, ok in self.checks) / len(self.checks)


def _hue(rgb: np.ndarray) -> np.ndarray:
    r, g, b = np.moveaxis(rgb, -1, 0)
    return np.arctan2(math.sqrt(3) * (g - b), 2 * r - g - b)


_NAMES = tuple(COLOURS)
_PURE_RGB = np.array([COLOURS[n] for n in _NAMES])
_HUES = _hue(_PURE_RGB)
_CHROMA = {n: float(np.ptp(colour_of(n, 1.0).numpy())) for n in _NAMES}


def _background(images: np.ndarray) -> np.ndarray:
    """Plane of grey (B, 3): level at the centre, change across x, change across y; three re-weighted fits."""
    count, size = images.shape[0], images.shape[-1]
    axis = (np.arange(size) + 0.5) / size - 0.5
    design = np.stack([np.ones((size, size)), np.tile(axis, (size, 1)), np.tile(axis[:, None], (1, size))], -1)
    design = design.reshape(-1, 3)
    grey = images.mean(1).reshape(count, -1)
    chroma = np.ptp(images, axis=1).reshape(count, -1)
    edge = np.zeros((size, size))
    edge[[0, -1]], edge[:, [0, -1]] = 1, 1
    level = np.array([np.median(g[(edge.ravel() > 0)]) for g in grey])
    plane = np.stack([level, np.zeros(count), np.zeros(count)], 1)
    for reach in (0.25, 0.12, 0.06):
        weight = (np.abs(grey - plane @ design.T) < reach) * (chroma < 0.12) + 1e-6
        gram = np.einsum("bp,pi,pj->bij", weight, design, design) + 1e-4 * np.eye(3)
        right = np.einsum("bp,pi->bi", weight * grey, design)
        right[:, 0] += 1e-4 * plane[:, 0]
        plane = np.linalg.solve(gram, right[..., None])[..., 0]
    return plane


def read(images: Tensor) -> list[Reading]:
    """What each picture shows. images: (B, 3, 32, 32) in [0, 1] (values outside are clipped)."""
    pixels = images.detach().float().cpu().clamp(0, 1).numpy().astype(np.float64)
    size = pixels.shape[-1]
    planes = _background(pixels)
    axis = (np.arange(size) + 0.5) / size - 0.5
    ground = planes[:, 0, None, None] + planes[:, 1, None, None] * axis + planes[:, 2, None, None] * axis[:, None]
    away = np.abs(pixels - ground[:, None]).max(1)
    found: list[list[dict]] = []
    for image, distance in zip(pixels, away, strict=True):
        labels, count = ndimage.label(distance > _FOREGROUND)  # type: ignore[misc]
        parts = []
        for index, box in enumerate(ndimage.find_objects(labels, count), start=1):
            part = _part(image, distance, labels == index, box)
            if part is not None:
                parts.append(part)
        found.append(parts)
    _name_shapes([p for parts in found for p in parts])
    return [
        Reading(tuple(Seen(**p) for p in parts), float(np.hypot(plane[1], plane[2])))
        for parts, plane in zip(found, planes, strict=True)
    ]


def _part(image: np.ndarray, distance: np.ndarray, where: np.ndarray, box: tuple[slice, ...]) -> dict | None:
    """Measure one connected part; None for a speck too small to see."""
    inside = distance[where]
    strength = np.quantile(inside, 0.8)  # the distance of a fully covered pixel
    rim = ndimage.binary_dilation(where)
    soft = np.where(rim, np.clip(distance / strength, 0, 1), 0.0)
    area = float(soft.sum())
    if area < _SPECK:
        return None
    rows, columns = np.nonzero(soft)
    weight = soft[rows, columns] / area
    core = where & (distance > 0.6 * strength)
    rgb = image[:, core].T
    gap = np.angle(np.exp(1j * (_hue(rgb)[:, None] - _HUES)))
    chroma = np.ptp(rgb, axis=1)
    votes = np.bincount(np.abs(gap).argmin(1)[chroma > 0.1], minlength=len(_NAMES)) / len(rgb)
    best = int(votes.argmax())
    colour = _NAMES[best] if votes[best] >= _PURE else None
    saturation = float(np.median(chroma)) / _CHROMA[_NAMES[best]]
    return {
        "shape": None,
        "colour": colour,
        "x": float((columns + 0.5) @ weight),
        "y": float((rows + 0.5) @ weight),
        "radius": math.sqrt(area / math.pi),
        "saturation": float(np.clip(saturation, 0, 1)),
        "mask": soft,
    }


def _name_shapes(parts: list[dict]) -> None:
    """Give each part the shape whose exact coverage at its centre and area overlaps it best."""
    if not parts:
        return
    place = torch.tensor([[p["x"], p["y"], p["radius"]] for p in parts], dtype=torch.float32)
    exact = coverage(*place.unbind(1)).numpy()
    soft = np.stack([p["mask"] for p in parts])[:, None]
    overlap = np.minimum(exact, soft).sum((2, 3)) / np.maximum(exact, soft).sum((2, 3))
    for part, row in zip(parts, overlap, strict=True):
        whole = math.pi * part["radius"] ** 2 >= _LEAST_AREA
        part["shape"] = SHAPES[int(row.argmax())] if row.max() >= _OVERLAP and whole else None


def _related(relation: str, a: Seen, b: Seen) -> bool:
    dx, dy = b.x - a.x, b.y - a.y
    along = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    return along >= max(_NEAR, _CONE * math.hypot(dx, dy))


def _checks(items: Sequence[Item], relation: str | None, objects: Sequence[Seen | None]) -> list[tuple[str, bool]]:
    checks = []
    for n, (item, o) in enumerate(zip(items, objects, strict=True), start=1):
        checks.append((f"shape {n}", o is not None and o.shape == item.shape))
        if item.colour:
            checks.append((f"colour {n}", o is not None and o.colour == item.colour))
        if item.size:
            checks.append((f"size {n}", o is not None and o.size == item.size))
    if relation:
        a, b = objects
        checks.append(("position", a is not None and b is not None and _related(relation, a, b)))
    return checks


_WEIGHT = {"shape": 100, "colour": 10, "size": 3, "position": 1}


def judge_reading(reading: Reading, requirement: Requirement) -> Verdict:
    """The verdict on a picture already read."""
    items = [i for i in requirement.items for _ in range(i.count)]
    objects: list[Seen | None] = sorted(reading.objects, key=lambda o: -o.radius)[: max(6, len(items))]  # type: ignore[assignment]
    objects += [None] * (len(items) - len(objects))
    best = max(
        (_checks(items, requirement.relation, chosen) for chosen in itertools.permutations(objects, len(items))),
        key=lambda checks: sum(_WEIGHT[what.split()[0]] for what, ok in checks if ok),
    )
    return Verdict((("number", len(reading.objects) == len(items)), *best))


def judge(images: Tensor, captions: Sequence[str]) -> list[Verdict]:
    """Judge pictures (B, 3, 32, 32) in [0, 1] against B captions of the grammar.

    Raises:
        ValueError: a caption outside the grammar, or as many captions as pictures not given.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images but {len(captions)} captions: give one caption an image.")
    wanted = [parse(c) for c in captions]
    return [judge_reading(r, w) for r, w in zip(read(images), wanted, strict=True)]
