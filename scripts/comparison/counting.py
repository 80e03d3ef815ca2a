"""What an update spends, counted in rows of its networks and in floating-point operations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from align.models._codec import KLCodec
from align.models._step_aware import StepAwareClip
from rewards import Composite


@contextmanager
def counted() -> Iterator[dict[str, float]]:
    """Inside, decoded and scored images are counted as forward-equivalents of their own networks: a forward 1, what is
    decoded with gradient is decoded again (1), a backward 2."""
    rows = {"decode": 0.0, "reward": 0.0}
    decode, score, judge = KLCodec.decode, Composite.forward, StepAwareClip.forward

    def decoding(self: KLCodec, x0: torch.Tensor) -> torch.Tensor:
        rows["decode"] += len(x0) * (4 if torch.is_grad_enabled() and x0.requires_grad else 1)
        return decode(self, x0)

    def scoring(self: Composite, images: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        rows["reward"] += len(images) * (3 if torch.is_grad_enabled() and images.requires_grad else 1)
        return score(self, images, prompts)

    def judging(self: StepAwareClip, images: torch.Tensor, prompts: Sequence[str], t: torch.Tensor) -> torch.Tensor:
        rows["reward"] += len(images)
        return judge(self, images, prompts, t)

    KLCodec.decode, Composite.forward, StepAwareClip.forward = decoding, scoring, judging  # type: ignore[method-assign]
    try:
        yield rows
    finally:
        KLCodec.decode, Composite.forward, StepAwareClip.forward = decode, score, judge  # type: ignore[method-assign]


def operations(call: Callable[[], Any]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())
