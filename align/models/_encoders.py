"""What families read from their text encoders."""

from typing import Any

from torch import Tensor

from align.models._tokens import Tokens


def clip_states(text_model: Any, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """CLIP's last hidden state but one, (B, L, D), and its first output: the projected pooled state, (B, P), if it
    has a projection."""
    out = text_model(tokens.ids, output_hidden_states=True)
    return out.hidden_states[-2], out[0]


def clip_pooled(text_model: Any, tokens: Tokens) -> Tensor:
    """CLIP's state at the end of the prompt, without a projection, (B, D)."""
    return text_model(tokens.ids).pooler_output


def t5_states(text_model: Any, tokens: Tokens, *, masked: bool) -> Tensor:
    """T5's last hidden state, (B, L, D); unmasked where the family was trained so: padding is then read as text."""
    return text_model(tokens.ids, attention_mask=tokens.mask if masked else None)[0]
