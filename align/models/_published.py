"""What a family's authors published: checkpoints, licences, scheduler configs and sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """One checkpoint. Its weights are not needed to build its network at real size, or to list what it is."""

    checkpoint: str
    """Hub id."""
    licence: str
    """Of the weights, by the name that the Hub has for it."""
    scheduler: Mapping[str, Any]
    """scheduler_config.json, as far as it decides anything."""
    sampling: Mapping[str, Any]
    """The sampling block of a recipe that the checkpoint is meant for."""
    latent: tuple[int, int, int]
    """(C, h, w) of one sample at the native resolution."""
    cond: Mapping[str, tuple[int, ...]]
    """Shape of one row of the tensors that an encoded prompt is."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the network's class that differ from its defaults."""
    vae: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the autoencoder's class that differ from its defaults."""
    text: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    """{component of the pipeline: (class of transformers, arguments of its config)} of the text encoders."""
    billions: float = 0.0
    """Parameters of the network, in 1e9."""
    text_billions: float = 0.0
    """Those of its text encoders."""


KL_VAE: dict[str, Any] = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
"""Stable Diffusion's autoencoder, whose shape most families kept."""


def flow_vae(scaling_factor: float, shift_factor: float) -> dict[str, Any]:
    """The 16-channel autoencoder of SD3 and FLUX.1."""
    bare = {"use_quant_conv": False, "use_post_quant_conv": False}
    scaled = {"scaling_factor": scaling_factor, "shift_factor": shift_factor}
    return {**KL_VAE, "sample_size": 1024, "latent_channels": 16, **bare, **scaled}
