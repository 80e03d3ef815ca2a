"""OCR: whether the text that a prompt puts between quotes can be read in the picture.

    d = 0 if the text is a part of what is read, else its edit distance from all that is read, at most its length n
    r = 1 - d / n        upper and lower case and blanks do not count; several quoted texts: their mean

The rule of Flow-GRPO (Liu et al. 2025, arXiv 2505.05470) on RapidOCR, whose models come with the package: pip install
"diffalign[ocr]". What is read is put together line by line, from the top.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from rewards._base import Reward
from rewards._card import Card
from rewards._config import RewardConfig
from rewards._errors import RewardError, refused

QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|«([^»]+)»|„([^“”]+)[“”]")


class OcrConfig(RewardConfig):
    name: Literal["ocr"] = "ocr"
    least: float = Field(default=0.5, ge=0, le=1)
    """The reader's confidence below which a line counts as not read."""

    card = Card(
        measures="Whether the text between the quotes of a prompt can be read in the picture.",
        range="[0, 1]",
        size="31 MB (PP-OCRv6 small, on the CPU)",
        hacking="Not measured. By its rule: the text large and many times over; other text besides costs nothing.",
        partner="clip",
        licences={"RapidOCR and PP-OCR": "Apache-2.0"},
    )

    def has_gradient(self) -> bool:
        return False

    def unreadable(self, prompts: Iterable[str]) -> Iterator[str]:
        return refused(quoted, prompts)


class Ocr(Reward):
    """1 - normalised edit distance, in [0, 1]; higher is more legible. Prompts must have text between quotes."""

    Config = OcrConfig
    config: OcrConfig

    def __init__(self, config: OcrConfig, read: Callable[[Any], str] | None = None):
        super().__init__(config)
        self.read = read or reader(config.least)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        wanted = [quoted(prompt) for prompt in prompts]
        levels = (images.detach().float().clamp(0, 1) * 255).round().byte().cpu().permute(0, 2, 3, 1).contiguous()
        seen = [self.read(one.numpy()) for one in levels]
        scores = [
            sum(legible(text, read) for text in texts) / len(texts) for texts, read in zip(wanted, seen, strict=True)
        ]
        return torch.tensor(scores, device=images.device)


def quoted(prompt: str) -> list[str]:
    """The texts between quotes."""
    found = [next(part for part in match if part).strip() for match in QUOTED.findall(prompt)]
    if not any(_plain(text) for text in found):
        raise RewardError(f'the prompt {prompt!r} has no text between quotes. Write it like: a sign that says "Open".')
    return [text for text in found if _plain(text)]


def legible(text: str, read: str) -> float:
    """1 - d / n of one text."""
    text, read = _plain(text), _plain(read)
    return 1.0 if text in read else 1 - min(distance(text, read), len(text)) / len(text)


def _plain(text: str) -> str:
    return re.sub(r"\s", "", text).lower()


def distance(a: str, b: str) -> int:
    """Levenshtein's: insertions, deletions and substitutions."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != other))
    return row[-1]


def reader(least: float) -> Callable[[Any], str]:
    """RapidOCR: 8-bit pixels (H, W, 3), RGB -> what is written there."""
    try:
        from rapidocr import RapidOCR  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RewardError(
            f'reward ocr: RapidOCR cannot be imported ({error}). Install it: pip install "diffalign[ocr]".'
        ) from None
    engine: Any = RapidOCR(params={"Global.log_level": "error", "Global.text_score": least})

    def read(pixels: Any) -> str:
        return " ".join(engine(pixels[..., ::-1].copy()).txts or ())

    return read
