"""What families read from their text encoders."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from align.models._tokens import Tokenizer, Tokens


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


class ChatTokenizer(Tokenizer):
    """Puts each prompt into the tokenizer's chat template as the user's message, and asks for the answer."""

    def __init__(self, tokenizer: Any, length: int, *, thinking: bool):
        super().__init__(tokenizer, length, num_ends=0)
        self.thinking = thinking

    def __call__(self, prompts: Sequence[str], device: Any) -> Tokens:
        return super().__call__([self._asked(prompt) for prompt in prompts], device)

    def _asked(self, prompt: str) -> str:
        message = [{"role": "user", "content": prompt}]
        return self.tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=self.thinking
        )


def compact(states: Tensor, mask: Tensor, length: int) -> dict[str, Tensor]:
    """The states (B, L, D) where mask (B, L) is 1, in order, then zeros up to `length`: "text", and "mask" likewise."""
    order = mask.argsort(dim=1, descending=True, stable=True)[:, :length]
    kept = mask.gather(1, order)
    return {
        "text": states.gather(1, order.unsqueeze(-1).expand(-1, -1, states.shape[-1])) * kept.unsqueeze(-1),
        "mask": kept,
    }
