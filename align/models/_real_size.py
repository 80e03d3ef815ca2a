"""A published checkpoint's network and autoencoder at their real size, from nothing but their configs."""

from types import SimpleNamespace
from typing import Any

import torch

from align.models._pipeline import PipelineModel
from align.models._published import Published
from align.models._quantize import Quantize
from samplers import TensorCond


def real_size(
    family: type[PipelineModel],
    published: Published,
    *,
    device: str = "meta",
    dtype: torch.dtype = torch.float32,
    quantize: Quantize | None = None,
) -> PipelineModel:
    """The bundle with random weights on `device` (meta: none at all) and without text encoders: see `example_cond`."""
    import diffusers

    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            network: Any = getattr(diffusers, family.network_class)(**published.network)
            vae = getattr(diffusers, family.vae_class)(**published.vae)
    finally:
        torch.set_default_dtype(default)
    scheduler = SimpleNamespace(config=dict(published.scheduler))
    pipeline = SimpleNamespace(**{family.network_name: network}, vae=vae, scheduler=scheduler)
    return family(family.Config(checkpoint=published.checkpoint, quantize=quantize), pipeline)


def example_cond(published: Published, rows: int = 1, *, device: str = "meta") -> TensorCond:
    """What stands for `rows` encoded prompts: ones, which as a mask means that every token counts."""
    return TensorCond({name: torch.ones(rows, *shape, device=device) for name, shape in published.cond.items()})
