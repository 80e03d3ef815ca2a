"""One denoiser early and another late ("hand-over"): an adapter for what an image is, the base for its finish."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samplers.denoiser import Denoiser
from samplers.prediction import Prediction
from samplers.schedule import Schedule


@dataclass(frozen=True)
class ByTime:
    """Denoisers with the time until which each is asked, falling to 0: the first with t > until, else the last."""

    parts: Sequence[tuple[Denoiser, float]]

    @property
    def schedule(self) -> Schedule:
        return self.parts[0][0].schedule

    @property
    def kind(self) -> Prediction:
        return self.parts[0][0].kind

    @property
    def rescale(self) -> Any:
        return getattr(self.parts[0][0], "rescale", None)

    def _at(self, t: float) -> Denoiser:
        return next((denoiser for denoiser, until in self.parts if t > until), self.parts[-1][0])

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        if t.ndim == 0:
            return self._at(float(t))(x_t, t, cond)
        asked = [self._at(float(one)) for one in t]
        if all(one is asked[0] for one in asked):
            return asked[0](x_t, t, cond)
        rows = [
            torch.tensor([i for i, one in enumerate(asked) if one is part], device=x_t.device) for part, _ in self.parts
        ]
        outs = [p(x_t[r], t[r], cond[r]) for (p, _), r in zip(self.parts, rows, strict=True) if len(r)]
        order = torch.cat([r for r in rows if len(r)]).argsort()
        return torch.cat(outs)[order]
