"""Features of prompts, each computed once: prompts carry no gradient and come back in every epoch."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class PromptCache:
    """encode: prompt -> one tensor. One prompt at a time, so that a row never depends on the batch that first needed it
    (padding and matrix products differ in their last bits), and a resumed run scores as an unbroken one.

    At most `budget` bytes are kept; the least recently used go first.
    """

    def __init__(self, encode: Callable[[str, torch.device], Tensor], budget: int = 2**28):
        self.encode = encode
        self.budget = budget
        self.bytes = 0
        self._rows: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """B prompts -> (B, ...) on `device`, without graph."""
        rows = {prompt: self._row(prompt, device) for prompt in dict.fromkeys(prompts)}
        return torch.stack([rows[prompt] for prompt in prompts])

    def _row(self, prompt: str, device: torch.device) -> Tensor:
        if prompt in self._rows:
            self._rows.move_to_end(prompt)
            return self._rows[prompt].to(device)
        with torch.no_grad():
            row = self.encode(prompt, device)
        self._rows[prompt] = row
        self.bytes += row.nbytes
        while self.bytes > self.budget and len(self._rows) > 1:
            self.bytes -= self._rows.popitem(last=False)[1].nbytes
        return row
