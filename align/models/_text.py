"""Prompts encoded once: the cache in front of a family's text encoders, and the CLIP encoder of SD 1.x and 2.x."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from align.models._tokens import Tokenizer, clip_length
from samplers import TensorCond

MAX_CACHED_BYTES = 2**32  # of CPU memory: 1,000 prompts of FLUX's T5, 36,000 of Stable Diffusion 1.5's CLIP in bf16


class CachedTextEncoder:
    """Encodes each prompt once for given weights. A family subclasses it and writes `embed`."""

    def __init__(self, *modules: nn.Module):
        self.modules = modules
        self.offloaded = False
        self.stays = False  # off-loaded for good: they encode where they are
        self.target: torch.device | None = None  # where off-loaded encoders encode, and their results are wanted
        self.trained = False  # a part of them is: nothing is cached, since a fused optimiser changes it without a trace
        self._cache: OrderedDict[tuple[str, str], dict[str, Tensor]] = OrderedDict()
        self._bytes = 0
        self._hashed: tuple[tuple[int, ...], str] | None = None

    @property
    def device(self) -> torch.device:
        return next(self.modules[0].parameters()).device

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The tensors of a Cond, each (len(prompts), ...), on the encoders' device."""
        raise NotImplementedError

    def encode(self, prompts: Sequence[str], grad: bool = False) -> TensorCond:
        """-> one row per prompt. With `grad` the graph reaches the encoders' parameters and nothing is cached.

        Without, prompts go through one at a time: a row must not depend, in its last bits, on the other prompts of the
        batch that first needed it, or a resumed run would differ from an unbroken one.
        """
        if grad:
            return TensorCond(self.embed(prompts))
        device = self.target or self.device
        if self.trained:
            with self._loaded(True), torch.no_grad():
                rows = [self.embed([prompt]) for prompt in prompts]
            return TensorCond({name: torch.cat([row[name] for row in rows]).to(device) for name in rows[0]})
        weights = self.fingerprint()
        with self._loaded(any((weights, prompt) not in self._cache for prompt in prompts)):
            rows = [self._cached(weights, prompt) for prompt in prompts]
        return TensorCond({name: torch.cat([row[name] for row in rows]).to(device) for name in rows[0]})

    def negative(self, prompt: str) -> TensorCond:
        """-> one row: a prompt that images are guided away from, as the stock pipeline reads it."""
        return self.encode([prompt])

    @contextmanager
    def _loaded(self, needed: bool) -> Iterator[None]:
        """Off-loaded encoders on their device; their hash stays that of before, since their weights do."""
        if self.stays or not (self.offloaded and needed and self.target is not None):
            yield
            return
        for module in self.modules:
            module.to(self.target)
        try:
            yield
        finally:
            for module in self.modules:
                module.to("cpu")
            if self._hashed is not None:
                self._hashed = (self._state(), self._hashed[1])

    def _state(self) -> tuple[int, ...]:
        """Changes when a tensor is replaced or changed in place."""
        tensors = [tensor for module in self.modules for tensor in module.state_dict().values()]
        return tuple(number for tensor in tensors for number in (tensor.data_ptr(), tensor._version))

    def _cached(self, weights: str, prompt: str) -> dict[str, Tensor]:
        key = (weights, prompt)
        if key not in self._cache:
            with torch.no_grad():
                self._cache[key] = {name: tensor.cpu() for name, tensor in self.embed([prompt]).items()}
            self._bytes += _size(self._cache[key])
            while self._bytes > MAX_CACHED_BYTES and len(self._cache) > 1:
                self._bytes -= _size(self._cache.popitem(last=False)[1])
        self._cache.move_to_end(key)
        return self._cache[key]

    def fingerprint(self) -> str:
        """A hash of all weights. Computed again only when a tensor was replaced or changed in place."""
        tensors = [tensor for module in self.modules for tensor in module.state_dict().values()]
        state = self._state()
        if self._hashed is None or self._hashed[0] != state:
            digest = hashlib.blake2b(digest_size=16)
            for tensor in tensors:
                digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            self._hashed = (state, digest.hexdigest())
        return self._hashed[1]


def _size(row: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in row.values())


class CLIPText(CachedTextEncoder):
    """The last hidden state of one CLIP text model, (B, L, D), named "text"."""

    def __init__(self, tokenizer: Any, text_model: Any):
        super().__init__(text_model)
        self.tokenizer = Tokenizer(tokenizer, clip_length(tokenizer, text_model))
        self.text_model = text_model

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer(prompts, self.device)
        masked = getattr(self.text_model.config, "use_attention_mask", False)
        return {"text": self.text_model(tokens.ids, attention_mask=tokens.mask if masked else None)[0]}
