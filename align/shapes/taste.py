"""What "people" like here: the gold utility and the preferences drawn from it.

    gold = graded judge + taste                                                     in [0, 2]
    taste = 0.4 saturated + 0.3 even + 0.2 centred + 0.1 apart                      in [0, 1]
    saturated = mean_i clip((s_i - 0.4) / 0.6)      s_i: an object's saturation
    even      = clip(1 - light / 0.2)               light: change of the background's grey level across the picture
    centred   = clip(1 - |mean centre - middle| / 10 px)
    apart     = clip(least gap between outlines / 8 px), 1 for a single object
    P(a preferred to b) = sigmoid((gold_a - gold_b) / temperature)                  Bradley and Terry 1952
with clip to [0, 1]. A picture without objects has saturated = centred = apart = 0.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from align.shapes.captions import parse
from align.shapes.judge import Reading, judge_reading, read
from align.shapes.scene import SIZE, Object, Scene, gap

WEIGHTS = {"saturated": 0.4, "even": 0.3, "centred": 0.2, "apart": 0.1}
TEMPERATURE = 0.15


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))


def taste_terms(picture: Scene | Reading) -> dict[str, float]:
    """The four terms of taste, each in [0, 1], of a scene or of what was read from a picture."""
    objects = [
        Object(o.shape or "circle", o.colour or "red", o.x, o.y, o.radius, o.saturation) for o in picture.objects
    ]
    even = _clip(1 - picture.light / 0.2)
    if not objects:
        return {"saturated": 0.0, "even": even, "centred": 0.0, "apart": 0.0}
    x, y = (sum(getattr(o, axis) for o in objects) / len(objects) for axis in "xy")
    gaps = [gap(a, b) for a, b in itertools.combinations(objects, 2)]
    return {
        "saturated": sum(_clip((o.saturation - 0.4) / 0.6) for o in objects) / len(objects),
        "even": even,
        "centred": _clip(1 - math.hypot(x - SIZE / 2, y - SIZE / 2) / 10),
        "apart": _clip(min(gaps) / 8) if gaps else 1.0,
    }


def taste(picture: Scene | Reading) -> float:
    """The taste term, in [0, 1]."""
    return sum(WEIGHTS[k] * v for k, v in taste_terms(picture).items())


def gold(images: Tensor, captions: Sequence[str]) -> Tensor:
    """Gold utility (B,) float64 in [0, 2] of pictures (B, 3, 32, 32) in [0, 1] for their captions.

    Raises:
        ValueError: a caption outside the grammar.
    """
    wanted = [parse(c) for c in captions]
    return torch.tensor(
        [judge_reading(r, w).graded + taste(r) for r, w in zip(read(images), wanted, strict=True)], dtype=torch.float64
    )


def prefer(gold_a: Tensor, gold_b: Tensor, rng: np.random.Generator, temperature: float = TEMPERATURE) -> Tensor:
    """One noisy choice a pair: (B,) bool, True where a is preferred; temperature 0 always takes the better one."""
    margin = (gold_a - gold_b).numpy()
    if temperature == 0:
        return torch.from_numpy(margin > 0)
    return torch.from_numpy(rng.random(margin.shape) < 1 / (1 + np.exp(-margin / temperature)))
