"""Values that options share."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

SETTING = re.compile(r"[a-z_]\w*(\.\w+)+=")
"""How `sampling.num_steps=4` begins, which `align train` takes as it is."""
STEPS = Annotated[int | None, typer.Option("--steps", min=1, help="Short for --set sampling.num_steps=N.")]
NEGATIVE = Annotated[
    str | None,
    typer.Option("--negative-prompt", help="What guidance leads away from: --set sampling.negative_prompt=."),
]
SIZE = Annotated[str | None, typer.Option("--size", help="Pixels: 512, or 768x512 (height x width).")]


def finite(value: float | None) -> float | None:
    """A number that is one: nan and infinity would draw black images without a word."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value}: is no finite number. Give one, such as 0.5.")
    return value


def home(value: Path | None) -> Path | None:
    """A path whose ~ is the user's home: the shell leaves the one of `--output=~/x` as it is."""
    try:
        return value and value.expanduser()
    except RuntimeError:
        raise typer.BadParameter(f"{value}: there is no such user's home. Write the path out.") from None


def settings_among(
    words: Sequence[str] | None,
    changes: Sequence[str] | None = None,
    *,
    steps: int | None = None,
    size: str | None = None,
    negative: str | None = None,
) -> tuple[list[str], list[str]]:
    """(the words that are none, all changes): `sampling.num_steps=4` means the same with --set and without."""
    words = words or ()
    said = [word for word in words if SETTING.match(word)]
    given = [] if steps is None else [f"sampling.num_steps={steps}"]
    if size is not None:
        given.append(f"sampling.image_size=[{', '.join(map(str, _sides(size)))}]")
    if negative is not None:
        given.append(f"sampling.negative_prompt={json.dumps(negative)}")
    return [word for word in words if word not in said], [*(changes or ()), *said, *given]


def _sides(text: str) -> tuple[int, int]:
    """ "512" or "768x512" -> (height, width)."""
    found = re.fullmatch(r"([1-9]\d*)(?:[x*]([1-9]\d*))?", text.strip().lower())
    if found is None:
        raise typer.BadParameter(f"{text}: is no size. Give pixels, such as 512, or height x width: 768x512.")
    return int(found[1]), int(found[2] or found[1])
