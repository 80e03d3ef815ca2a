"""VQAScore: the probability with which a vision-language model says yes when asked whether an image shows its prompt.

    probability  r = sum of p(w) over the first tokens w of "Yes"
    ratio        r = p(Yes) / (p(Yes) + p(No))
    log_odds     r = log p(Yes) - log p(No)             does not saturate: to train on

Lin et al. 2024, arXiv 2404.01291. Their own network is CLIP-FlanT5 (rewards/_clip_t5.py), of which p is the geometric
mean over the answer's tokens. With it and with a Qwen-VL the score has a gradient at the pixels, else it has none.
As the judge of a benchmark it is asked each question as it stands, and gives the probability of the answer
(`align evaluate --benchmark`; Soft-TIFA: Kamath et al. 2025, arXiv 2512.16853).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from rewards._asked import misformed, need_pixels
from rewards._base import Reward
from rewards._card import Card
from rewards._clip_t5 import KIND, ClipT5
from rewards._config import RewardConfig
from rewards._load import hf_config
from rewards._vlm import Vlm

WORD = "{} Answer in one word."  # how a benchmark's question is asked


class VqaScoreConfig(RewardConfig):
    name: Literal["vqascore"] = "vqascore"
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    """A folder or Hub id of an image-text-to-text model of transformers with a chat template, or of CLIP-FlanT5:
    zhiqiulin/clip-flant5-xxl (11.6 B) or -xl (3.2 B)."""
    form: Literal["probability", "ratio", "log_odds"] = "probability"
    """`probability` of yes; `ratio` of yes to yes and no; `log_odds` of yes over no, to train on."""
    question: str | None = None
    """Asked of each image; {prompt} is its prompt. Default: 'Does this image show "{prompt}"? Please answer yes or
    no.', for CLIP-FlanT5 'Does this figure show ...', as published."""
    tokenizer: str = "google/flan-t5-xxl"
    """Of CLIP-FlanT5, which is published without one."""
    differentiable: bool = True
    """False for a model other than a Qwen-VL or CLIP-FlanT5, whose pixels pass through a processor without gradient."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the network; probabilities are always computed in float32."""

    card = Card(
        measures="How sure a vision-language model is that an image shows its prompt.",
        range="[0, 1]; log_odds: 0 is even odds",
        size="8.3 B (Qwen2.5-VL-7B)",
        hacking="Not measured. By its form: the words of the prompt written into the picture, and what else persuades.",
        partner="hpsv2",
    )

    def licences(self) -> dict[str, str]:
        return self._of_checkpoint(self.model)

    def has_gradient(self) -> bool:
        return self.differentiable

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from misformed(self.question)


class VqaScore(Reward):
    """The probability of yes, or its log-odds; higher is a better match."""

    Config = VqaScoreConfig
    config: VqaScoreConfig

    def __init__(self, config: VqaScoreConfig):
        super().__init__(config)
        dtype = getattr(torch, config.dtype)
        if hf_config(config.model).get("model_type") == KIND:
            self.vlm: Any = ClipT5(config.model, dtype, config.tokenizer)
        else:
            if config.differentiable:
                need_pixels("vqascore", config.model)
            self.vlm = Vlm(config.model, dtype)
        self.question = self.vlm.question if config.question is None else config.question

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        asked = [self.question.format(prompt=prompt) for prompt in prompts]
        return torch.stack([self._score(*pair) for pair in zip(images, asked, strict=True)])

    def answers(self, images: Tensor, questions: Sequence[str], expected: Sequence[str]) -> Tensor:
        """B images, a question each, and the answer that is right -> its probability (B,)."""
        found = []
        for image, question, answer in zip(images, questions, expected, strict=True):
            found.append(self.vlm.says(image, WORD.format(question), [answer])[0].exp())
        return torch.stack(found)

    def _score(self, image: Tensor, question: str) -> Tensor:
        if self.config.form == "probability":
            return self.vlm.says(image, question, ["Yes"])[0].exp()
        yes, no = self.vlm.says(image, question, ["Yes", "No"])
        return yes - no if self.config.form == "log_odds" else torch.sigmoid(yes - no)
