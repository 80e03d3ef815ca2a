"""What the families on a VP table read from a checkpoint, and what they refuse."""

from collections.abc import Mapping
from typing import Any

from align.errors import UserError
from align.models._base import Codec
from samplers import Prediction

SD_BETAS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "clip_sample": False,
    "steps_offset": 1,
}
"""The table of Stable Diffusion and what was made from it."""
KINDS = {"epsilon": Prediction.EPSILON, "v_prediction": Prediction.V, "sample": Prediction.SAMPLE}


def vp_kind(checkpoint: str, scheduler: Mapping[str, Any]) -> Prediction:
    """The prediction that a scheduler config names; one without a table of betas is refused."""
    if scheduler.get("beta_schedule") is None and scheduler.get("trained_betas") is None:
        raise UserError(
            f"model.checkpoint={checkpoint}: its scheduler has no beta_schedule (EDM's and a flow's have none), so its "
            "noise is not the one that this family is trained on. Use a checkpoint whose scheduler has one."
        )
    named = scheduler.get("prediction_type", "epsilon")
    if named not in KINDS:
        raise UserError(
            f"model.checkpoint={checkpoint}: its prediction_type {named!r} is not one of {', '.join(KINDS)}."
        )
    if scheduler.get("rescale_betas_zero_snr") and KINDS[named] is Prediction.EPSILON:
        raise UserError(
            f"model.checkpoint={checkpoint}: its scheduler has zero terminal SNR (rescale_betas_zero_snr) but predicts "
            "epsilon, which says nothing of the image at pure noise; such models predict v. Correct prediction_type or "
            "rescale_betas_zero_snr in its scheduler/scheduler_config.json."
        )
    return KINDS[named]


def unet_image_size(checkpoint: str, unet: Any, codec: Codec) -> tuple[int, int]:
    """(height, width) in pixels that a UNet was trained at; one that takes more than latents is refused."""
    if unet.config.time_cond_proj_dim is not None:
        raise UserError(
            f"model.checkpoint={checkpoint}: its network is told the guidance scale (time_cond_proj_dim), as LCM's "
            "distilled networks are, which is not supported. Use the base model with the LCM-LoRA as base_adapter."
        )
    if unet.config.in_channels != codec.channels:
        raise UserError(
            f"model.checkpoint={checkpoint}: its network takes {unet.config.in_channels} channels, its latents have "
            f"{codec.channels}: an inpainting, depth or upscaling model. Use a text-to-image one."
        )
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * codec.factor, width * codec.factor
