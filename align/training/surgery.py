"""Gradient surgery: an update that does not raise, to first order, a loss that is to be kept.

    g <- g - (<g, p>/|p|^2) p   where <g, p> < 0;    g as it is elsewhere

g: the gradient of what is trained, p: that of what is kept, both over all parameters, micro-batches and processes, so
that <g, p> = 0 afterwards. Yu et al. (PCGrad), arXiv 2001.06782, algorithm 1, one way only. The length of g plays no
part in it, nor does that of p.
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


class Held:
    """The gradient p of what is kept, beside the parameters' own; empty until a loss is kept."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = list(parameters)
        self.gradients: list[Tensor] = []

    def add(self, kept: Tensor, scaler: Any = None) -> None:
        """Adds the gradient of a micro-batch's weighted sum (), which may have no graph where no row is kept."""
        if not kept.requires_grad:
            return
        kept = kept if scaler is None else scaler.scale(kept)
        found = torch.autograd.grad(kept, self.parameters, retain_graph=True, materialize_grads=True)
        self.gradients = [a + b for a, b in zip(self._all(), found, strict=True)]

    @torch.no_grad()
    def project(self, accelerator: Accelerator) -> float:
        """Takes out of the parameters' `grad` what is against p; the cosine of the two before that. A p that is not
        finite leaves no gradient finite."""
        held = self._all()
        if accelerator.num_processes > 1:
            flat: Any = accelerator.reduce(torch.cat([p.flatten() for p in held]), reduction="sum")
            parts = flat.split([p.numel() for p in held])
            held = [part.view_as(p) for part, p in zip(parts, held, strict=True)]
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        inner, square, length = (_inner(a, b) for a, b in ((own, held), (held, held), (own, own)))
        tiny = torch.finfo(torch.float64).tiny
        factor = torch.where(inner >= 0, 0.0, inner / square.clamp(min=tiny))
        for parameter, gradient, p in zip(self.parameters, own, held, strict=True):
            parameter.grad = gradient - factor.to(gradient) * p
        return float(inner / (square * length).sqrt().clamp(min=tiny))

    def _all(self) -> list[Tensor]:
        return self.gradients or [torch.zeros_like(p) for p in self.parameters]


def _inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """<a, b> in float64, ()."""
    return torch.stack([(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)]).sum()
