"""A published checkpoint's network and autoencoder at their real size, from nothing but their configs."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from align.models._pipeline import PipelineModel
from align.models._published import Published
from align.models._quantize import Quantize
from align.registry import MODELS
from samplers import TensorCond


def find(checkpoint: str) -> tuple[type[PipelineModel], Published] | None:
    """The family of a Hub id and what is known of it; None where it is not listed."""
    families = [MODELS.get(name) for name in MODELS.names()]
    known = {one.checkpoint: (family, one) for family in families for one in getattr(family, "published", ())}
    return known.get(checkpoint)


def real_size(
    family: type[PipelineModel],
    published: Published,
    *,
    device: str = "meta",
    dtype: torch.dtype = torch.float32,
    vae: torch.dtype | None = None,
    quantize: Quantize | None = None,
    config: Any = None,
) -> PipelineModel:
    """The bundle with random weights on `device` (meta: none at all) and without text encoders: see `example_cond`.

    `vae`: the autoencoder's dtype, where it is not `dtype`. `config`: the family's settings, in place of `quantize`.
    """
    import diffusers

    network: Any = made(getattr(diffusers, family.network_class), published.network, device, dtype)
    codec = made(getattr(diffusers, family.vae_class), published.vae, device, vae or dtype)
    scheduler = SimpleNamespace(config=dict(published.scheduler))
    pipeline = SimpleNamespace(**{family.network_name: network}, vae=codec, scheduler=scheduler)
    return family(config or family.Config(checkpoint=published.checkpoint, quantize=quantize), pipeline)


def text_encoders(
    published: Published, *, device: str = "meta", dtype: torch.dtype = torch.float32
) -> dict[str, nn.Module]:
    """{component of the pipeline: text encoder} with random weights."""
    import transformers

    found = {}
    for name, (kind, settings) in published.text.items():
        encoder: Any = getattr(transformers, kind)
        with _new(device, dtype):  # not made in float32 first: a T5 of 4.7 B parameters would take 18 GiB for it
            found[name] = encoder(encoder.config_class(**settings)).to(dtype)
    return found


def made(kind: Any, settings: Any, device: str, dtype: torch.dtype) -> nn.Module:
    """A diffusers network with random weights, made where and as it is kept: some parts of it in float32 always."""
    with _new(device, dtype):
        found: nn.Module = kind(**settings)
    exact = set(getattr(kind, "_keep_in_fp32_modules", None) or ())
    for name, module in found.named_modules():
        if exact & {*name.split(".")}:
            module.float()
    return found


@contextmanager
def _new(device: str, dtype: torch.dtype) -> Iterator[None]:
    """What is made inside lies there, in this dtype."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(default)


def example_cond(published: Published, rows: int = 1, *, device: str = "meta") -> TensorCond:
    """What stands for `rows` encoded prompts: ones, which as a mask means that every token counts."""
    return TensorCond({name: torch.ones(rows, *shape, device=device) for name, shape in published.cond.items()})
