"""Scenes as data and their exact pictures.

A shape is a signed distance d(p) (negative inside, pixels); its coverage of a pixel is clip(1/2 - d, 0, 1), which is
an anti-aliased picture of it. Every shape of radius r covers the same area, pi r^2, so a radius means one thing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

SIZE = 32  # pixels on a side
SHAPES = ("circle", "square", "triangle", "star")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.14, 0.14),
    "yellow": (0.94, 0.84, 0.10),
    "green": (0.14, 0.70, 0.22),
    "cyan": (0.10, 0.76, 0.84),
    "blue": (0.15, 0.27, 0.92),
    "purple": (0.66, 0.15, 0.86),
}
RADII = {"small": (3.7, 4.3), "large": (5.0, 5.7)}  # pixels
SIZE_BORDER = 4.65  # a radius above it is large
BACKGROUNDS = {"light": 0.86, "dark": 0.14}  # grey level
SATURATION = (0.5, 1.0)  # 1: the named colour itself, 0: grey of the same mean
LIGHT = (0.0, 0.2)  # change of the background's grey level across the picture

_HALF_SIDE = math.sqrt(math.pi) / 2  # of a square of area pi
_TRIANGLE = math.sqrt(math.pi / (3 * math.sqrt(3) / 4))  # circumradius of an equilateral triangle of area pi
_STAR_INNER = 0.45  # inner over outer radius
_STAR = math.sqrt(math.pi / (5 * _STAR_INNER * math.sin(math.pi / 5)))  # outer radius of a five-pointed star of area pi
REACH = {
    "circle": 1.0,
    "square": _HALF_SIDE * math.sqrt(2),
    "triangle": _TRIANGLE,
    "star": _STAR,
}  # outermost point / r


@dataclass(frozen=True)
class Object:
    """One shape: centre (x to the right, y down, pixels), radius (pixels), saturation in [0, 1]."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    saturation: float = 1.0

    @property
    def size(self) -> str:
        return "large" if self.radius > SIZE_BORDER else "small"


@dataclass(frozen=True)
class Scene:
    """Objects on a grey background whose level changes by `light` across the picture in direction `angle` (radians)."""

    objects: tuple[Object, ...]
    background: str = "light"
    light: float = 0.0
    angle: float = 0.0

    def mirrored(self) -> "Scene":
        """The scene seen in a mirror: left and right exchanged."""
        objects = tuple(replace(o, x=SIZE - o.x) for o in self.objects)
        return replace(self, objects=objects, angle=math.pi - self.angle)


def coverage(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """How much of each pixel each shape covers: centres and radii (N,) -> (N, len(SHAPES), SIZE, SIZE) in [0, 1]."""
    axis = torch.arange(SIZE, dtype=torch.float32) + 0.5
    py, px = axis[None, :, None] - y[:, None, None], axis[None, None, :] - x[:, None, None]
    r = radius[:, None, None]
    dist = torch.hypot(px, py)
    circle = dist - r
    square = torch.maximum(px.abs(), py.abs()) - _HALF_SIDE * r
    edge = _TRIANGLE / 2 * r
    triangle = torch.maximum(py - edge, math.cos(math.pi / 6) * px.abs() - 0.5 * py - edge)
    # The star folded into half a ray: the line from its outer vertex (R, 0) to its inner one bounds it.
    wedge = math.pi / 5
    angle = torch.atan2(px, -py)  # 0 points up
    folded = (torch.remainder(angle + wedge, 2 * wedge) - wedge).abs()
    u, v = dist * folded.cos(), dist * folded.sin()
    du, dv = _STAR_INNER * math.cos(wedge) - 1, _STAR_INNER * math.sin(wedge)
    length = math.hypot(du, dv)
    star = (dv * (u - _STAR * r) - du * v) / length
    return (0.5 - torch.stack([circle, square, triangle, star], dim=1)).clamp(0, 1)


def _outline(shape: str) -> np.ndarray:
    """Points (P, 2) on the boundary of a shape of radius 1 around the origin."""
    turn = {"circle": 24, "square": 4, "triangle": 3, "star": 10}[shape]
    angle = 2 * np.pi * np.arange(turn) / turn + (np.pi / 4 if shape == "square" else 0)  # 0 points up
    radius = np.full(turn, REACH[shape])
    if shape == "star":
        radius[1::2] *= _STAR_INNER
    corners = np.stack([radius * np.sin(angle), -radius * np.cos(angle)], 1)
    along = np.arange(0, 1, turn / 24 if turn <= 24 else 1)[:, None, None]
    return (corners + along * (np.roll(corners, -1, 0) - corners)).reshape(-1, 2)


_OUTLINES = {shape: _outline(shape) for shape in SHAPES}


def gap(a: Object, b: Object) -> float:
    """Distance between the outlines of two objects that do not overlap, pixels."""
    p = a.radius * _OUTLINES[a.shape] + (a.x, a.y)
    q = b.radius * _OUTLINES[b.shape] + (b.x, b.y)
    return float(np.sqrt(((p[:, None] - q[None]) ** 2).sum(-1).min()))


def colour_of(name: str, saturation: float) -> Tensor:
    """RGB (3,) of a named colour, drawn towards the grey of its own mean by 1 - saturation."""
    pure = torch.tensor(COLOURS[name])
    return saturation * pure + (1 - saturation) * pure.mean()


def render_batch(scenes: Sequence[Scene]) -> Tensor:
    """Pictures of scenes: (B, 3, SIZE, SIZE) in [0, 1]; later objects lie on top."""
    axis = (torch.arange(SIZE, dtype=torch.float32) + 0.5) / SIZE - 0.5
    level = torch.tensor([BACKGROUNDS[s.background] for s in scenes])
    slope = torch.tensor([[s.light * math.cos(s.angle), s.light * math.sin(s.angle)] for s in scenes])
    plane = level[:, None, None] + slope[:, :1, None] * axis + slope[:, 1:, None] * axis[:, None]
    images = plane[:, None].expand(-1, 3, -1, -1).clamp(0, 1).clone()
    objects = [(i, o) for i, s in enumerate(scenes) for o in s.objects]
    if not objects:
        return images
    place = torch.tensor([[o.x, o.y, o.radius] for _, o in objects])
    kind = torch.tensor([SHAPES.index(o.shape) for _, o in objects])
    masks = coverage(*place.unbind(1))[torch.arange(len(objects)), kind]
    paint = torch.stack([colour_of(o.colour, o.saturation) for _, o in objects])
    for (i, _), mask, rgb in zip(objects, masks, paint, strict=True):
        images[i] += mask * (rgb[:, None, None] - images[i])
    return images


def render(scene: Scene) -> Tensor:
    """The picture of one scene: (3, SIZE, SIZE) in [0, 1]."""
    return render_batch([scene])[0]
