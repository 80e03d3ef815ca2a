"""What a diffusion network makes of noisy latents on the way: tokens of some of its blocks, and its embedding of t.

The network is the base's own, called as the base calls it; behind the last block that is read it is cut off and the
call ends there, so that nothing is spent on a prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from align.models._base import DiffusionModel
from rewards._errors import RewardError


class Read(NamedTuple):
    """Of one call."""

    image: list[Tensor]
    """Of each block that is read, (B, N, D)."""
    text: list[Tensor]
    """Likewise; of networks whose blocks change the text too."""
    embedding: Tensor
    """(B, E), of t."""


@dataclass(frozen=True)
class Anatomy:
    """Where a class of networks has what is read."""

    blocks: str
    """A list of blocks, which give (text, image) tokens; or a single block, which gives an image (B, D, h, w)."""
    time: str
    texts: bool
    """Whether blocks give text tokens."""
    behind: tuple[str, ...]
    """Parts that nothing read depends on."""


ANATOMIES = {
    "SD3Transformer2DModel": Anatomy("transformer_blocks", "time_text_embed", True, ("norm_out", "proj_out")),
    "UNet2DConditionModel": Anatomy("mid_block", "time_embedding", False, ("up_blocks", "conv_norm_out", "conv_out")),
}


class _Enough(Exception):
    """All that is read has been computed."""


class Features(nn.Module):
    """`image` and `text`: numbers of blocks, from 1. Takes the model's network for itself and cuts it off."""

    def __init__(self, model: DiffusionModel, image: Sequence[int], text: Sequence[int]):
        super().__init__()
        network: Any = model.network
        name = type(network).__name__
        if name not in ANATOMIES:
            raise RewardError(f"reward latent: a {name} cannot be read. Known: {', '.join(ANATOMIES)}.")
        self.anatomy, self.model, self.network = ANATOMIES[name], model, network
        found = getattr(network, self.anatomy.blocks)
        blocks = list(found) if isinstance(found, nn.ModuleList) else [found]
        wrong = [n for n in (*image, *text) if not 1 <= n <= len(blocks)] or (text and not self.anatomy.texts)
        if wrong or not image:
            raise RewardError(
                f"reward latent: blocks {list(image)} and, for the text, {list(text)} are to be read, and the {name} "
                f"has {len(blocks)}{'' if self.anatomy.texts else ', none of which changes the text'}. It is the head "
                "of another network."
            )
        if isinstance(found, nn.ModuleList):
            setattr(network, self.anatomy.blocks, found[: max(*image, *text, 0)])
        for part in self.anatomy.behind:
            there = getattr(network, part)
            setattr(network, part, nn.ModuleList() if isinstance(there, nn.ModuleList) else nn.Identity())
        self.image, self.text, self.last = tuple(image), tuple(text), max(*image, *text, 0)
        self.blocks = blocks[: self.last]
        self.tokens = _width(network, self.anatomy)
        self.embedding = _embedding(network)

    def forward(self, x_t: Tensor, t: Tensor, cond: Any) -> Read:
        """x_t (B, C, h, w), t (B,) in [0, 1], cond: B rows of the model's text."""
        seen: dict[int, tuple[Tensor, Tensor | None]] = {}
        times: list[Tensor] = []

        def reads(number: int) -> Any:
            def hook(module: nn.Module, args: Any, out: Any) -> None:
                text, image = out if isinstance(out, tuple) else (None, out.flatten(2).transpose(1, 2))
                seen[number] = image, text
                if number == self.last:
                    raise _Enough

            return hook

        hooks = [block.register_forward_hook(reads(k)) for k, block in enumerate(self.blocks, 1)]
        hooks.append(
            getattr(self.network, self.anatomy.time).register_forward_hook(lambda m, a, out: times.append(out))
        )
        try:
            self.model.predict(self.network, x_t, t, cond)
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        words = [text for n in self.text if (text := seen[n][1]) is not None]
        return Read([seen[n][0] for n in self.image], words, times[0].expand(len(x_t), -1))


def _width(network: Any, anatomy: Anatomy) -> int:
    return network.inner_dim if anatomy.texts else network.config.block_out_channels[-1]


def _embedding(network: Any) -> int:
    return network.inner_dim if hasattr(network, "inner_dim") else network.time_embedding.linear_2.out_features
