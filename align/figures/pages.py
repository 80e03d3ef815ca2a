"""Pages from the templates beside this file: all that is put in is escaped, for HTML (a page needs nothing else) or, in
a .md, for Markdown."""

import base64
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from rewards._numerals import counted

TEMPLATES = Path(__file__).with_name("templates")
SMALL = 128  # pixels; images below this side are drawn enlarged, pixel by pixel, and stored without loss


def page(name: str, **values: Any) -> str:
    """The template `name` with these values."""
    return _environment(markdown=name.endswith(".md")).get_template(name).render(**values)


def plain(text: str) -> str:
    """Text that Markdown and HTML take for nothing else: no tags, links, emphasis, cells or lines of its own."""
    return re.sub(r"([\\`*\[\]|<>~])", r"\\\1", " ".join(text.split()))


def _plainly(value: Any) -> Any:
    """What a Markdown template puts in: plain, but for what it calls `safe`."""
    return value if isinstance(value, Markup) else plain(str(value))


@cache
def _environment(*, markdown: bool) -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=not markdown, finalize=_plainly if markdown else None,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.globals["file"] = lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))
    made.globals |= {"picture": picture, "counted": counted}
    return made


def picture(file: Path, alt: str = "", side: int | None = None, *, lazy: bool = False) -> Markup:
    """An <img> that holds the picture itself, at most `side` pixels large; a word in its place where it is damaged."""
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except Exception:  # PIL raises what the bytes happen to mean
        return Markup("<em>{} cannot be read</em>").format(file.name)
    data, small = io.BytesIO(), min(image.size) < SMALL
    if side is not None:
        image.thumbnail((side, side))
    image.save(data, **({"format": "PNG"} if small else {"format": "WEBP", "quality": 88}))
    return _image(data.getvalue(), image.size, "png" if small else "webp", alt, pixels=small, lazy=lazy)


def as_it_is(file: Path, alt: str, *, pixels: bool = False) -> Markup:
    """An <img> that holds the file: one that moves."""
    with Image.open(file) as opened:
        size = opened.size
    return _image(file.read_bytes(), size, file.suffix[1:], alt, pixels=pixels, lazy=False)


def _image(data: bytes, size: tuple[int, int], kind: str, alt: str, *, pixels: bool, lazy: bool) -> Markup:
    """With its size, so that the page keeps its place before it is read."""
    look = Markup(' class="pixels"') if pixels else ""
    waits = Markup(' loading="lazy"') if lazy else ""
    source = base64.b64encode(data).decode()
    tag = '<img{}{} alt="{}" width="{}" height="{}" src="data:image/{};base64,{}">'
    return Markup(tag).format(look, waits, alt, *size, kind, source)
