"""Trained tokens of a CLIP text encoder (textual inversion): a placeholder in prompts that stands for n embeddings.

The encoder's own table of embeddings is not touched, nor made longer: rows beside it are looked up for ids beyond it.
A file of them is diffusers' (`load_textual_inversion`): learned_embeds.safetensors, {placeholder: (n, D)}.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from align.errors import UserError
from align.models._text import CLIPText
from align.models._tokens import Tokenizer, Tokens

FILE_NAME = "learned_embeds.safetensors"


class _Beside(nn.Module):
    """The table of embeddings `inner` with `rows` (n, D) for the ids from `first` on."""

    def __init__(self, inner: Any, rows: Tensor, first: int):
        super().__init__()
        self.inner, self.first = inner, first
        self.rows = nn.Parameter(rows)

    @property
    def weight(self) -> Tensor:
        return self.inner.weight

    def forward(self, ids: Tensor) -> Tensor:
        own = ids >= self.first
        known = self.inner(torch.where(own, 0, ids))
        learnt = self.rows.to(known.dtype)[(ids - self.first).clamp(min=0)]
        return torch.where(own.unsqueeze(-1), learnt, known)


class _Expanding(Tokenizer):
    """A placeholder of n tokens is written out, as diffusers' pipelines do."""

    def __init__(self, inner: Tokenizer, placeholder: str, names: Sequence[str]):
        super().__init__(inner.tokenizer, inner.length, num_ends=inner.num_ends)
        self.placeholder, self.whole = placeholder, " ".join(names)

    def __call__(self, prompts: Sequence[str], device: Any) -> Tokens:
        return super().__call__([prompt.replace(self.placeholder, self.whole) for prompt in prompts], device)


class SoftPrompt:
    """The tokens as what is trained: `rows` (n, D) in float32. The model's text encoder knows them from then on.

    Raises UserError where the family reads its text otherwise, and for a placeholder that is a word already.
    """

    rowwise = False

    def __init__(self, model: Any, placeholder: str, rows: Tensor):
        text = _encoder(model)
        tokenizer = text.tokenizer.tokenizer
        names = [placeholder] + [f"{placeholder}_{i}" for i in range(1, len(rows))]
        vocabulary = tokenizer.get_vocab()
        if known := [name for name in names if name in vocabulary or f"{name}</w>" in vocabulary]:
            raise UserError(f"{known[0]}: the tokenizer knows this word. Choose another, such as <{placeholder}-1>.")
        inner = text.text_model.get_input_embeddings()
        if rows.shape[-1] != inner.weight.shape[-1]:
            raise UserError(
                f"{placeholder}: its embeddings have {rows.shape[-1]} numbers, and this encoder's "
                f"{inner.weight.shape[-1]}. They are of another model."
            )
        tokenizer.add_tokens(names)
        first = int(tokenizer.convert_tokens_to_ids(placeholder))
        self.placeholder, self.text, text.trained = placeholder, text, True
        self.embedding = _Beside(inner, rows.float().clone().to(inner.weight.device), first)
        text.text_model.set_input_embeddings(self.embedding)
        text.tokenizer = _Expanding(text.tokenizer, placeholder, names)

    @classmethod
    def starting(cls, model: Any, placeholder: str, word: str, num_tokens: int) -> "SoftPrompt":
        """Starts as the embeddings of `word`'s tokens, repeated where there are fewer."""
        text = _encoder(model)
        ids = text.tokenizer.tokenizer(word, add_special_tokens=False).input_ids
        if not ids:
            raise UserError(f"objective.init={word!r}: has no tokens. Give a word to start from.")
        chosen = torch.tensor([ids[i % len(ids)] for i in range(num_tokens)])
        weight = text.text_model.get_input_embeddings().weight
        return cls(model, placeholder, weight.detach()[chosen.to(weight.device)])

    @classmethod
    def load(cls, model: Any, file: Path) -> "SoftPrompt":
        """The tokens of a file, put on `model`."""
        return cls(model, *read(file))

    @property
    def rows(self) -> nn.Parameter:
        return self.embedding.rows

    @contextmanager
    def at(self, rows: Tensor) -> Iterator[None]:
        """Inside, the tokens are these; afterwards what they were, bit for bit."""
        own = self.rows.detach().clone()
        self.load_state_dict({"rows": rows})
        try:
            yield
        finally:
            self.load_state_dict({"rows": own})

    def parameters(self) -> list[nn.Parameter]:
        return [self.rows]

    def prepare(self, accelerator: Any) -> None:
        self.text.text_model.to(accelerator.device)

    def train(self, mode: bool = True) -> None:
        """Nothing here is random."""

    def clip(self, max_norm: float | None) -> Tensor:
        return torch.nn.utils.clip_grad_norm_([self.rows], float("inf") if max_norm is None else max_norm)

    def metrics(self) -> dict[str, float]:
        return {"token_norm": float(self.rows.detach().norm(dim=1).mean())}

    def state_dict(self) -> dict[str, Tensor]:
        return {"rows": self.rows.detach()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.rows.copy_(state["rows"])

    def export(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        save_file({self.placeholder: self.rows.detach().cpu().contiguous()}, path / FILE_NAME)


def locate(source: Path) -> Path | None:
    """The file of learnt tokens that a run, an adapter's folder or the file itself has; None where there is none."""
    source = source.expanduser()
    tried = (source / "adapter" / FILE_NAME, source / FILE_NAME, source)
    return next((path for path in tried if path.name == FILE_NAME and path.is_file()), None)


def read(file: Path) -> tuple[str, Tensor]:
    """(placeholder, its embeddings (n, D)) of a file. Raises UserError for one that is none."""
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read as safetensors ({error}). Give a run's {FILE_NAME}.") from None
    if len(state) != 1:
        raise UserError(f"{file}: holds {len(state)} tensors, and a file of learnt tokens has one.")
    placeholder, rows = next(iter(state.items()))
    return placeholder, rows.view(-1, rows.shape[-1])


def _encoder(model: Any) -> CLIPText:
    text = getattr(model, "text", None)
    if not isinstance(text, CLIPText):
        family = getattr(getattr(model, "settings", None), "name", "this model")
        raise UserError(
            f"{family}: trained tokens are of one CLIP text encoder, as Stable Diffusion 1 and 2 have it, and this "
            "family reads its text otherwise. Choose such a model."
        )
    return text
