"""A vision-language model that gives a mark: UnifiedReward, or any that answers in levels.

    expected  r = sum_k v_k p(k) / sum_k p(k)    over the first tokens k of the levels, after the words `begun`
    written   r = the number after `begun` in the greedy answer

Wang et al. 2025, arXiv 2503.05236, publish the written mark; the expectation over it is ours: it has a gradient at the
pixels (Qwen-VL models), needs one pass and no answer, and is no whole number. With `levels: {excellent: 1, good: 0.75,
fair: 0.5, poor: 0.25, bad: 0}` it is the softmax over words of Q-Align (Wu et al. 2023, arXiv 2312.17090).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from rewards._asked import misformed, need_pixels
from rewards._base import Reward
from rewards._card import UNSTATED, Card
from rewards._config import RewardConfig
from rewards._errors import RewardError
from rewards._vlm import Vlm


class UnifiedRewardConfig(RewardConfig):
    name: Literal["unifiedreward"] = "unifiedreward"
    model: str = "CodeGoat24/UnifiedReward-qwen-7b"
    """A folder or Hub id of an image-text-to-text model of transformers with a chat template."""
    question: str = (
        'This image was made for the text "{prompt}". Judge how well it shows what the text says and how good it '
        "looks, and give it a whole number from 1 (very bad) to 5 (very good) after the words 'Final Score:'."
    )
    """Asked of each image; {prompt} is its prompt. Ours: for published marks put the words of the model's authors."""
    begun: str = "Final Score: "
    """How the answer is made to begin (expected), or what the number stands after (written)."""
    levels: dict[str, float] = Field(default={"1": 1.0, "2": 2.0, "3": 3.0, "4": 4.0, "5": 5.0}, min_length=2)
    """{word: its value}; of each word the first token counts, and no two may begin alike."""
    form: Literal["expected", "written"] = "expected"
    """`expected`: the mean over the levels, with a gradient; `written`: the number in the greedy answer, without."""
    differentiable: bool = True
    """False for a model other than a Qwen-VL, whose pixels pass through a processor without gradient."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the network; probabilities are always computed in float32."""

    card = Card(
        measures="The mark that a vision-language model gives an image for its prompt.",
        range="[1, 5], or between the levels' values",
        size="8.3 B (Qwen2.5-VL-7B)",
        hacking="Not measured. By its form: pictures in the one manner that the model marks best.",
        partner="imagereward",
        licences={"the model": UNSTATED},
    )

    def has_gradient(self) -> bool:
        return self.form == "expected" and self.differentiable

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from misformed(self.question)


class UnifiedReward(Reward):
    """The mark; higher is better."""

    Config = UnifiedRewardConfig
    config: UnifiedRewardConfig

    def __init__(self, config: UnifiedRewardConfig):
        super().__init__(config)
        if config.has_gradient():
            need_pixels("unifiedreward", config.model)
        self.vlm: Any = Vlm(config.model, getattr(torch, config.dtype))
        encode = self.vlm.tokenizer.encode
        self.tokens = [encode(word, add_special_tokens=False)[0] for word in config.levels]
        if len(set(self.tokens)) < len(self.tokens):
            raise RewardError(
                f"reward unifiedreward: two of the levels {', '.join(config.levels)} begin with one token."
            )

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        asked = [self.config.question.format(prompt=prompt) for prompt in prompts]
        score = self._expected if self.config.form == "expected" else self._written
        return torch.stack([score(*pair) for pair in zip(images, asked, strict=True)])

    def _expected(self, image: Tensor, question: str) -> Tensor:
        logits = self.vlm.next_words(image, question, self.config.begun)
        return logits[self.tokens].softmax(0) @ logits.new_tensor(list(self.config.levels.values()))

    def _written(self, image: Tensor, question: str) -> Tensor:
        said = self.vlm.said(image, question)
        values = [float(value) for value in self.config.levels.values()]
        found = re.search(re.escape(self.config.begun.strip()) + r"\s*([-+]?\d+(?:\.\d+)?)", said)
        if found is None or not min(values) <= float(found[1]) <= max(values):
            raise RewardError(
                f"reward {self.name}: {' '.join(said.split())[-120:]!r} has no number from {min(values):g} to "
                f"{max(values):g} after {self.config.begun.strip()!r}. Ask otherwise, or take form: expected."
            )
        return torch.tensor(float(found[1]), device=image.device)
