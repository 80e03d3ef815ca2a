"""The eye of the shapes world: soft checks of a caption on what a small network reads in the pixels.

    soft:    mean of the checks                         in [0, 1], near the graded judge
    log:     mean of log max(check, 0.02)               in [-3.9, 0]; pulls hardest on what fails most
    verdict: 1 if every check holds when counted        0 or 1, near the strict judge; no gradient

The checks and the network are those of align.shapes.eye.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from torch import Tensor

from align.shapes import captions
from align.shapes.eye import checks, load
from align.shapes.scene import SIZE
from rewards._base import Reward
from rewards._card import Card
from rewards._config import RewardConfig
from rewards._errors import RewardError

LEAST = 0.02  # of a check under the logarithm


class EyeConfig(RewardConfig):
    name: Literal["eye"] = "eye"
    model: str = "embedded:shapes-eye"
    """A folder with config.json and model.safetensors."""
    form: Literal["soft", "log", "verdict"] = "soft"
    """`soft`: mean of the checks; `log`: of their logarithms; `verdict`: 1 where all hold, without a gradient."""

    card = Card(
        measures="Which objects of a caption a picture shows, how many and where, read by a dense network.",
        range="[0, 1]; log [-3.9, 0]; verdict 0 or 1",
        size="embedded, 0.3 M",
        hacking="`soft`: one object too many, which meets more checks than it fails; `log` was not seen to be. Dull "
        "colours and uneven light go unseen.",
        partner="judge",
    )

    def has_gradient(self) -> bool:
        return self.form != "verdict"

    def unreadable(self, prompts: Iterable[str]) -> Iterator[str]:
        return captions.unreadable(prompts)


class Eye(Reward):
    """Share of a caption's checks that a picture meets; higher meets more. Prompts must be captions of the grammar."""

    Config = EyeConfig

    def __init__(self, config: EyeConfig):
        super().__init__(config)
        self.network = load(config.model)
        self.form = config.form

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if images.shape[-2:] != (SIZE, SIZE):
            size = "x".join(str(n) for n in reversed(images.shape[-2:]))
            raise RewardError(f"reward eye reads {SIZE}x{SIZE} pixels, not {size}: it belongs to the embedded models.")
        soft, weight, hard = checks(self.network(images.float()), prompts)
        if self.form == "verdict":
            return (hard | (weight == 0)).all(1).float()
        values = soft.clamp(min=LEAST).log() if self.form == "log" else soft
        return (values * weight).sum(1) / weight.sum(1)
