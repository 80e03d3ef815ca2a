"""The browsable grid of an evaluation's page: a card a prompt, the baseline's image and each arm's, with scores."""

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from align.evaluation.benchmarks import Item
from align.evaluation.files import Folder
from align.evaluation.prompts import shares
from align.evaluation.results import Measured

MOST = 600  # images in a page
SIDE = 320  # pixels; larger images are stored at this size
SMALL = 128  # images below this side are stored without loss and drawn pixel by pixel


def grid(measured: Sequence[Measured], items: Sequence[Item], folder: Folder, verdict: str) -> str:
    """The controls and the cards; the first image of each prompt, of as many prompts as a page can hold."""
    places = shares(items, min(len(items), max(1, MOST // len(measured))))
    labels = list(measured[0].scores)
    arms = [one.arm.label for one in measured]
    cards = "".join(_card(measured, items[place], place, folder, labels, verdict) for place in places)
    shown = "every prompt" if len(places) == len(items) else f"{len(places)} of the {len(items)} prompts"
    note = f"The first image of {shown}; all images lie in the folder images beside this page."
    return f'{_controls(labels, arms, items, verdict)}<p class="small">{note}</p><div id="grid">{cards}</div>'


def _controls(labels: Sequence[str], arms: Sequence[str], items: Sequence[Item], verdict: str) -> str:
    categories = list(dict.fromkeys(item.category for item in items if item.category))
    parts = [_select("score", "score", [(label, label) for label in labels], verdict)]
    if categories:
        parts.append(_select("category", "category", [("", "all"), *((c, c) for c in categories)], ""))
    orders = [("", "as given")]
    for number, arm in enumerate(arms[1:], 1):
        orders += [(f"-{number}", f"largest gain of {arm}"), (f"{number}", f"largest loss of {arm}")]
    parts.append(_select("order", "order", orders, ""))
    parts.append('<label>words <input id="words" type="search" placeholder="red circle"></label>')
    parts.append('<label>size <input id="size" type="range" min="64" max="320" value="128"></label>')
    return f'<form class="controls" onsubmit="return false">{"".join(parts)}</form>'


def _select(name: str, title: str, options: Sequence[tuple[str, str]], chosen: str) -> str:
    drawn = "".join(
        f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{escape(text)}</option>'
        for value, text in options
    )
    return f'<label>{escape(title)} <select id="{name}">{drawn}</select></label>'


def _card(
    measured: Sequence[Measured], item: Item, place: int, folder: Folder, labels: Sequence[str], verdict: str
) -> str:
    scores = [{label: round(float(one.scores[label][place, 0]), 4) for label in labels} for one in measured]
    cells = []
    for number, (one, said) in enumerate(zip(measured, scores, strict=True)):
        rose = said[verdict] - scores[0][verdict]
        kind = "plain" if number == 0 or rose == 0 else "good" if rose > 0 else "bad"
        cells.append(
            f'<div class="{kind}">{_image(folder.image(one.arm, place, 0), one.arm.label)}'
            f"<span>{escape(one.arm.label)} <b>{said[verdict]:.3f}</b></span></div>"
        )
    category = f"<i>{escape(item.category)}</i>" if item.category else ""
    return (
        f'<figure class="cell" data-place="{place}" data-category="{escape(item.category)}" '
        f"data-scores='{escape(json.dumps(scores), quote=True)}'><div>{''.join(cells)}</div>"
        f"<figcaption>{escape(item.prompt)} {category}</figcaption></figure>"
    )


def _image(file: Path, name: str) -> str:
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    data, small = io.BytesIO(), min(picture.size) < SMALL
    picture.thumbnail((SIDE, SIDE))
    picture.save(data, **({"format": "PNG"} if small else {"format": "WEBP", "quality": 86}))
    kind, style = ("png", "pixels") if small else ("webp", "smooth")
    source = f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
    return f'<img class="{style}" loading="lazy" alt="{escape(name)}" src="{source}">'
