"""OCR: the rule on given texts, and RapidOCR on rendered ones."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from rewards import RewardError
from rewards.ocr import Ocr, OcrConfig, distance, legible, quoted


@pytest.mark.parametrize(
    ("a", "b", "wanted"), [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("a", "a", 0)]
)
def test_the_edit_distance(a, b, wanted):
    assert distance(a, b) == distance(b, a) == wanted


@pytest.mark.parametrize(
    ("text", "read", "score"),
    [
        ("Open", "OPEN", 1.0),
        ("Open", "we are open today", 1.0),
        ("New York", "newyork", 1.0),
        ("Open", "Opon", 0.75),
        ("Open", "", 0.0),
        ("Open", "something quite else and long", 0.0),
    ],
)
def test_the_rule(text, read, score):
    assert legible(text, read) == pytest.approx(score)


def test_what_stands_between_quotes():
    assert quoted('a sign "Open" and “Closed now”') == ["Open", "Closed now"]
    for prompt in ("a sign", 'a sign ""', "a dog's collar", 'a 5" screen'):
        with pytest.raises(RewardError, match="no text between quotes") as caught:
            quoted(prompt)
        assert "\n" not in str(caught.value)


def test_scores_are_means_over_the_texts():
    told = iter(["open", "closed"])
    reward = Ocr(OcrConfig(), read=lambda pixels: next(told))
    assert not reward.differentiable
    assert reward(torch.zeros(2, 3, 4, 4), ['"open" "abcd"', '"closer"']).tolist() == pytest.approx([0.5, 5 / 6])


def drawn(text: str, turn: int = 0) -> torch.Tensor:
    image = Image.new("RGB", (256, 96), "white")
    ImageDraw.Draw(image).text((20, 24), text, fill="black", font=ImageFont.load_default(40))
    pixels = np.array(image.rotate(turn, expand=True, fillcolor="white"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


def test_rapidocr_reads_what_is_rendered():
    """Two words, one upside down, half of what is asked, another word, and nothing at all."""
    pytest.importorskip("rapidocr")
    reward = Ocr(OcrConfig())
    prompt = 'a sign that says "Hello World"'
    assert float(reward(drawn("Hello World"), [prompt])[0]) == 1
    assert float(reward(drawn("Hello", 180), ['"hello"'])[0]) == 1
    assert float(reward(drawn("HELLO"), [prompt])[0]) == 0.5
    assert float(reward(drawn("Banana"), ['"Hello"'])[0]) < 0.5
    assert float(reward(drawn(""), [prompt])[0]) == 0
