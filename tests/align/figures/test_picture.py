"""Captions in pictures: what the font has not is still told apart."""

import pytest
import torch
from PIL import ImageChops

from align.figures.picture import Cell, legible, sheet


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("a red circle, 100 %\nof it", "a red circle, 100 % of it"),
        ("café, ①", "cafe, 1"),
        ("红色 circle", "U+7EA2 U+8272 circle"),
        ("love \u2764\ufe0f it", "love U+2764 it"),  # the variation selector has no form of its own
        ("cafe\u0301", "cafe"),
        ("👩‍🚀", "U+1F469 U+1F680"),
        ("a\ud800b", "a U+D800 b"),  # half of a pair, from broken JSON
        ("a\x00b\x1b", "a U+0000 b U+001B"),
    ],
)
def test_what_the_font_has_not_is_written_by_its_number(text, drawn):
    assert legible(text) == drawn


def test_two_prompts_in_cjk_do_not_look_alike():
    """As boxes they would: the font draws one box for all that it has not."""
    first, second, again = (
        sheet([(text, [Cell(torch.zeros(3, 64, 64), text, text)])], columns=1) for text in ("红色", "圆形", "红色")
    )
    assert ImageChops.difference(first, again).getbbox() is None
    assert ImageChops.difference(first, second).getbbox() is not None
