"""The browsable grid of an evaluation's page: a cell a prompt, the baseline's image and each arm's, with scores."""

import json
from collections.abc import Sequence
from typing import Any

from align.evaluation.benchmarks import Item
from align.evaluation.files import Folder
from align.evaluation.prompts import shares
from align.evaluation.results import Measured

MOST = 600  # images in a page
SIDE = 320  # pixels; larger images are stored at this size


def grid(measured: Sequence[Measured], items: Sequence[Item], folder: Folder, verdict: str) -> dict[str, Any]:
    """The controls and the cells; the first image of each prompt, of as many prompts as a page can hold."""
    places = shares(items, min(len(items), max(1, MOST // len(measured))))
    shown = "every prompt" if len(places) == len(items) else f"{len(places)} of the {len(items)} prompts"
    return {
        "controls": _controls(list(measured[0].scores), [one.arm.label for one in measured], items, verdict),
        "cells": [_cell(measured, items[place], place, folder, verdict) for place in places],
        "shown": f"The first image of {shown}; all images lie in the folder images beside this page.",
        "side": SIDE,
    }


def _controls(labels: Sequence[str], arms: Sequence[str], items: Sequence[Item], verdict: str) -> list[Any]:
    """(name, [(value, text)], the value that is chosen) of each list."""
    found: list[Any] = [("score", [(label, label) for label in labels], verdict)]
    if categories := list(dict.fromkeys(item.category for item in items if item.category)):
        found.append(("category", [("", "all"), *((c, c) for c in categories)], ""))
    orders = [("", "as given")]
    for number, arm in enumerate(arms[1:], 1):
        orders += [(f"-{number}", f"largest gain of {arm}"), (f"{number}", f"largest loss of {arm}")]
    return [*found, ("order", orders, "")]


def _cell(measured: Sequence[Measured], item: Item, place: int, folder: Folder, verdict: str) -> dict[str, Any]:
    scores = [{label: round(float(v[place, 0]), 4) for label, v in one.scores.items()} for one in measured]
    images = []
    for number, (one, said) in enumerate(zip(measured, scores, strict=True)):
        rose = said[verdict] - scores[0][verdict]
        kind = "plain" if number == 0 or rose == 0 else "good" if rose > 0 else "bad"
        file = folder.image(one.arm, place, 0)
        images.append({"kind": kind, "file": file, "label": one.arm.label, "score": f"{said[verdict]:.3f}"})
    return {**item._asdict(), "place": place, "scores": json.dumps(scores), "images": images}
