"""Scenes drawn at random: any scene, or one that meets a requirement."""

import math

import numpy as np

from align.shapes.captions import Item, Requirement
from align.shapes.scene import BACKGROUNDS, COLOURS, LIGHT, RADII, REACH, SATURATION, SHAPES, SIZE, Object, Scene, gap

GAP = 2.0  # least distance between the outlines of two objects that a composed scene keeps, pixels
_FAR = 6.0  # least offset along the axis of a relation, pixels


def _holds(relation: str | None, a: Object, b: Object) -> bool:
    dx, dy = b.x - a.x, b.y - a.y
    along = {"left of": dx, "right of": -dx, "above": dy, "below": -dy, None: math.inf}[relation]
    return along >= max(_FAR, 0.75 * math.hypot(dx, dy)) if relation else True


def _apart(a: Object, b: Object) -> bool:
    if math.hypot(a.x - b.x, a.y - b.y) < 0.8 * (a.radius + b.radius) + GAP:  # they overlap
        return False
    return gap(a, b) >= GAP


def _object(item: Item, crowded: bool, rng: np.random.Generator) -> Object:
    size = item.size or ("small" if crowded else str(rng.choice(list(RADII))))
    radius = float(rng.uniform(*RADII[size]))
    margin = REACH[item.shape] * radius
    x, y = rng.uniform(margin, SIZE - margin, 2)
    colour = item.colour or str(rng.choice(list(COLOURS)))
    return Object(item.shape, colour, float(x), float(y), radius, 1.0)


def compose(requirement: Requirement, rng: np.random.Generator) -> Scene:
    """A random scene that meets the requirement and shows nothing else.

    Whatever is left open (places, free colours and sizes, saturation, background and its light) is drawn at random.
    """
    items = [i for i in requirement.items for _ in range(i.count)]
    while True:
        objects: list[Object] = []
        for item in items:
            for _ in range(20):
                new = _object(item, len(items) > 2, rng)
                if all(_apart(new, old) for old in objects):
                    objects.append(new)
                    break
            else:
                break
        if len(objects) == len(items) and (len(objects) < 2 or _holds(requirement.relation, *objects[:2])):
            break
    saturation = rng.uniform(*SATURATION)
    painted = tuple(
        Object(o.shape, o.colour, o.x, o.y, o.radius, float(np.clip(saturation + rng.uniform(-0.1, 0.1), *SATURATION)))
        for o in objects
    )
    background = str(rng.choice(list(BACKGROUNDS)))
    return Scene(painted, background, float(rng.uniform(*LIGHT)), float(rng.uniform(0, 2 * math.pi)))


def any_scene(rng: np.random.Generator, most: int = 4) -> Scene:
    """A scene of one to `most` random objects, of which no caption need be true."""
    count = int(rng.integers(1, most + 1))
    items = tuple(Item(str(rng.choice(SHAPES))) for _ in range(count))
    return compose(Requirement(items), rng)
