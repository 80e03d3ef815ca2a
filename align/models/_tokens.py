"""Prompts to token ids of one length, with a warning that shows what was cut."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

SHOWN = 120
"""Letters of what was cut: of a text that is no prompt all would flood the terminal."""


class Tokens(NamedTuple):
    """ids and mask, both (B, L); the mask is 1 where a token is not padding."""

    ids: Tensor
    mask: Tensor


class Tokenizer:
    """Pads and cuts to `length` tokens; `num_ends` of them end every prompt, and stay when it is cut."""

    def __init__(self, tokenizer: Any, length: int, *, num_ends: int = 1):
        self.tokenizer = tokenizer
        self.length = length
        self.num_ends = num_ends

    def __call__(self, prompts: Sequence[str], device: Any) -> Tokens:
        for prompt in prompts:
            self._warn_if_cut(prompt)
        found = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return Tokens(found.input_ids.to(device), found.attention_mask.to(device))

    def _warn_if_cut(self, prompt: str) -> None:
        ids = self.tokenizer(prompt, verbose=False).input_ids
        if len(ids) > self.length:
            lost = self.tokenizer.decode(ids[self.length - self.num_ends : len(ids) - self.num_ends]).strip()
            more = f" and {len(lost) - SHOWN} letters more" if len(lost) > SHOWN else ""
            warnings.warn(
                f'prompt cut to the {self.length} tokens that the text encoder reads; lost: "{lost[:SHOWN]}"{more}',
                stacklevel=2,
            )


def clip_length(tokenizer: Any, text_model: Any) -> int:
    """The number of tokens that a CLIP text model reads: a tokenizer saved without its limit says 1e30."""
    return min(tokenizer.model_max_length, text_model.config.max_position_embeddings)
