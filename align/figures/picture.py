"""Sheets of images with their prompts and a judge's verdict on each: what a person looks at after the numbers.

The font is Pillow's own, the same on every machine. It has the letters of English and few others: an accent that it has
not is left out, any other character is written by its number, U+7EA2, and not as the empty box that all of them share.
"""

import functools
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PASSED, FAILED, PLAIN = (28, 140, 60), (200, 40, 40), (150, 150, 150)
MIN_SIDE = 128  # small images are enlarged by a whole factor to at least this
MARGIN, FRAME, LINE = 10, 3, 15
FORMLESS = ("Mn", "Cf")  # marks, joiners, variation selectors


class Cell(NamedTuple):
    """One picture of a sheet: pixels (3, H, W) in [0, 1], a title above it and, if judged, the verdict."""

    pixels: Tensor
    title: str
    verdict: str = ""
    passed: bool | None = None
    """The frame's colour: green, red, or grey for None."""


def sheet(groups: Sequence[tuple[str, Sequence[Cell]]], *, columns: int) -> Image.Image:
    """Groups of cells side by side, each over its prompt, `columns` groups a row; every group as long as the first."""
    columns = min(columns, len(groups))
    height, width = groups[0][1][0].pixels.shape[1:]
    scale = -(-MIN_SIDE // min(height, width)) if min(height, width) < MIN_SIDE else 1
    cell_width, cell_height = width * scale + 2 * FRAME, height * scale + 2 * FRAME
    group_width = len(groups[0][1]) * (cell_width + 4)
    font = _font()
    characters = max(8, int(group_width / 6.5))
    wrapped = [textwrap.wrap(legible(prompt), characters)[:3] for prompt, _ in groups]
    group_height = 2 * LINE + cell_height + LINE * max(map(len, wrapped))
    rows = -(-len(groups) // columns)
    size = (columns * (group_width + MARGIN) + MARGIN, rows * (group_height + MARGIN) + MARGIN)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for number, ((_, cells), lines) in enumerate(zip(groups, wrapped, strict=True)):
        left = MARGIN + (number % columns) * (group_width + MARGIN)
        top = MARGIN + (number // columns) * (group_height + MARGIN)
        for cell in cells:
            colour = PLAIN if cell.passed is None else PASSED if cell.passed else FAILED
            draw.text((left, top), legible(cell.title), fill="black", font=font)
            draw.rectangle((left, top + LINE, left + cell_width - 1, top + LINE + cell_height - 1), fill=colour)
            picture = to_pil(cell.pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            image.paste(picture, (left + FRAME, top + LINE + FRAME))
            draw.text((left, top + LINE + cell_height), legible(cell.verdict), fill=colour, font=font)
            left += cell_width + 4
        left = MARGIN + (number % columns) * (group_width + MARGIN)
        for i, line in enumerate(lines):
            draw.text((left, top + (2 + i) * LINE + cell_height), line, fill="black", font=font)
    return image


def legible(text: str) -> str:
    """`text` as the font can draw it: letters it has not without their marks, else by their number."""
    return " ".join("".join(map(_legible, text)).split())


@functools.cache
def _legible(character: str) -> str:
    if character.isspace() or _has(character):
        return character
    plain = [part for part in unicodedata.normalize("NFKD", character) if unicodedata.category(part) not in FORMLESS]
    return "".join(part if _has(part) else f" U+{ord(part):04X} " for part in plain)


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=12)


@functools.cache
def _has(character: str) -> bool:
    """Whether the font draws it otherwise than a code point that no font has a form for."""
    return _drawn(character) != _drawn("\U0010ffff")


def _drawn(text: str) -> bytes:
    image = Image.new("L", (3 * LINE, 3 * LINE))
    ImageDraw.Draw(image).text((LINE, LINE), text, fill=255, font=_font())
    return image.tobytes()


def to_pil(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> an 8-bit RGB image."""
    return Image.fromarray((pixels.detach().float().cpu() * 255).round().byte().permute(1, 2, 0).contiguous().numpy())
