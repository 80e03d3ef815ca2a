"""Draws docs/img/soft_places.png: the gradient of soft checks moves what is drawn until the caption is met.

python scripts/figures/soft_places.py
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from align.figures.picture import to_pil
from align.registry import REWARDS, build
from align.shapes.scene import COLOURS, SHAPES, coverage

TARGET = Path(__file__).parents[2] / "docs" / "img" / "soft_places.png"
CAPTION = "a red star left of a blue circle"
START = ((14.0, 9.0), (19.0, 22.0))  # star and circle, pixels
STEPS, SHOWN, RATE = 60, (0, 5, 10, 20, 60), 0.25


def painted(places: Tensor) -> Tensor:
    """A star and a circle at places (2, 2) -> (1, 3, 32, 32) in [0, 1], differentiable in the places."""
    masks = coverage(places[:, 0], places[:, 1], torch.tensor([5.0, 5.0]))
    image = torch.full((3, 32, 32), 0.86)
    for mask, shape, colour in zip(masks, ("star", "circle"), ("red", "blue"), strict=True):
        alpha = mask[SHAPES.index(shape)]
        image = image * (1 - alpha) + torch.tensor(COLOURS[colour])[:, None, None] * alpha
    return image[None]


def ascended(steps: int = STEPS) -> tuple[list[Tensor], Tensor, list[float]]:
    """(pictures at every step, the last places, scores) of gradient ascent on where the two stand."""
    reward = build(REWARDS, REWARDS.look_up({"name": "eye", "model": "embedded:shapes-detector", "form": "log"}))
    places = torch.tensor(START, requires_grad=True)
    optimiser = torch.optim.Adam([places], lr=RATE)
    seen, scores = [], []
    for _ in range(steps + 1):
        picture = painted(places)
        score = reward(picture, [CAPTION]).sum()
        seen.append(picture.detach()[0])
        scores.append(float(score.detach()))
        optimiser.zero_grad()
        (-score).backward()
        optimiser.step()
    return seen, places.detach(), scores


def main() -> None:
    seen, _, _ = ascended()
    side, gap = 128, 8
    sheet = Image.new("RGB", (len(SHOWN) * (side + gap) - gap, side), "white")
    for column, step in enumerate(SHOWN):
        sheet.paste(to_pil(seen[step]).resize((side, side), Image.Resampling.NEAREST), (column * (side + gap), 0))
    sheet.save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
