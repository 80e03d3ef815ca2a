"""VQAScore: the probability with which a vision-language model says yes when asked whether an image shows its prompt.

    probability  r = sum of p(w) over the first tokens w of "Yes"
    ratio        r = p(Yes) / (p(Yes) + p(No))
    log_odds     r = log p(Yes) - log p(No)             does not saturate: to train on

Lin et al. 2024, arXiv 2404.01291. With a Qwen-VL the score has a gradient at the pixels; with other models it has none.
As the judge of a benchmark it is asked each question as it stands, and gives the probability of the answer
(`align evaluate --benchmark`; Soft-TIFA: Kamath et al. 2025, arXiv 2512.16853).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from rewards._base import Reward
from rewards._card import Card
from rewards._config import RewardConfig
from rewards._vlm import Vlm, chosen, knows_pixels

WORD = "{} Answer in one word."  # how a benchmark's question is asked


class VqaScoreConfig(RewardConfig):
    name: Literal["vqascore"] = "vqascore"
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    """A folder or Hub id of an image-text-to-text model of transformers with a chat template."""
    form: Literal["probability", "ratio", "log_odds"] = "probability"
    """`probability` of yes; `ratio` of yes to yes and no; `log_odds` of yes over no, to train on."""
    question: str = 'Does this image show "{prompt}"? Please answer yes or no.'
    """Asked of each image; {prompt} is its prompt."""
    differentiable: bool = True
    """False for a model other than a Qwen-VL, whose pixels pass through a processor without gradient."""
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
        try:
            self.question.format(prompt="")
        except (KeyError, IndexError, ValueError):
            yield ".question", "has braces other than {prompt}. Write them double: {{ }}."


class VqaScore(Reward):
    """The probability of yes, or its log-odds; higher is a better match."""

    Config = VqaScoreConfig
    config: VqaScoreConfig

    def __init__(self, config: VqaScoreConfig):
        super().__init__(config)
        if config.differentiable and not knows_pixels(config.model):
            from rewards._errors import RewardError

            raise RewardError(
                f"reward vqascore: the pixels of {config.model} pass through its processor, without gradient. Set "
                "differentiable: false, or take a Qwen-VL."
            )
        self.vlm: Any = Vlm(config.model, getattr(torch, config.dtype))
        self.yes, self.no = self.vlm.spelled("Yes"), self.vlm.spelled("No")

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        asked = [self.config.question.format(prompt=prompt) for prompt in prompts]
        return torch.stack([self._score(*pair) for pair in zip(images, asked, strict=True)])

    def answers(self, images: Tensor, questions: Sequence[str], expected: Sequence[str]) -> Tensor:
        """B images, a question each, and the answer that is right -> its probability (B,)."""
        found = []
        for image, question, answer in zip(images, questions, expected, strict=True):
            logits = self.vlm.next_words(image, WORD.format(question))
            found.append(chosen(logits, self.vlm.spelled(answer)).exp())
        return torch.stack(found)

    def _score(self, image: Tensor, question: str) -> Tensor:
        logits = self.vlm.next_words(image, question)
        yes, no = chosen(logits, self.yes), chosen(logits, self.no)
        if self.config.form == "probability":
            return yes.exp()
        return yes - no if self.config.form == "log_odds" else torch.sigmoid(yes - no)
