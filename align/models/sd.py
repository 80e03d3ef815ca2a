"""Stable Diffusion 1.x and 2.x: a UNet on the latents of a KL autoencoder, CLIP text, a VP table; epsilon or v."""

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from align.models._codec import KLCodec
from align.models._grids import VPGrids
from align.models._load import CheckpointConfig
from align.models._pipeline import PipelineModel
from align.models._text import CLIPText
from align.models._vp import unet_image_size, vp_kind
from samplers import VPSchedule


class SDConfig(CheckpointConfig):
    """A Stable Diffusion 1.x or 2.x checkpoint."""

    name: Literal["sd"] = "sd"


class StableDiffusion(PipelineModel):
    """The bundle. `pipeline`: a loaded StableDiffusionPipeline to wrap as it is, in place of loading the checkpoint."""

    Config = SDConfig
    pipelines = ("StableDiffusionPipeline",)
    network_name = "unet"
    unused = ("safety_checker", "feature_extractor")
    constructor: ClassVar = {"requires_safety_checker": False}
    # The attention projections, as in the DRaFT, Diffusion-DPO and diffusers LoRA recipes.
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def assemble(self, config: SDConfig, pipeline: Any) -> None:
        scheduler = dict(pipeline.scheduler.config)
        self.kind = vp_kind(config.checkpoint, scheduler)
        self.schedule = self._table = VPSchedule.from_config(scheduler)
        self.grids = VPGrids(self._table, scheduler)
        self.codec = KLCodec(pipeline.vae, chunk=config.decode_chunk)
        self.text = CLIPText(pipeline.tokenizer, pipeline.text_encoder)
        self.image_size = unet_image_size(config.checkpoint, pipeline.unet, self.codec)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """See `DiffusionModel.predict`. The UNet is told the table index, t = (i + 1)/T <-> i."""
        dtype = self.network_dtype
        index = self._table.index(t).float()
        text = cond.tensors["text"].to(dtype)
        return network(x_t.to(dtype), index, encoder_hidden_states=text, return_dict=False)[0].to(x_t.dtype)
