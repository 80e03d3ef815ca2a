"""Stable Diffusion 1.x and 2.x: a UNet on the latents of a KL autoencoder, CLIP text, a VP table; epsilon or v."""

import copy
from typing import Any, Literal

from torch import Tensor, nn

from align.errors import UserError
from align.models._base import DiffusionModel
from align.models._codec import KLCodec
from align.models._grids import VPGrids
from align.models._load import CheckpointConfig, load_pipeline
from align.models._text import CLIPText
from samplers import Prediction, VPSchedule

KINDS = {"epsilon": Prediction.EPSILON, "v_prediction": Prediction.V, "sample": Prediction.SAMPLE}


class SDConfig(CheckpointConfig):
    """A Stable Diffusion 1.x or 2.x checkpoint."""

    name: Literal["sd"] = "sd"


class StableDiffusion(DiffusionModel):
    """The bundle. `pipeline`: a loaded StableDiffusionPipeline to wrap as it is, in place of loading the checkpoint."""

    Config = SDConfig
    # The attention projections, as in the DRaFT, Diffusion-DPO and diffusers LoRA recipes.
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, config: SDConfig, pipeline: Any = None):
        if pipeline is None:
            names = {"network": "unet", "text": "text_encoder", "vae": "vae"}
            dtypes = {names[part]: dtype for part, dtype in config.dtype.resolve().items()}
            pipeline = load_pipeline(
                config, "StableDiffusionPipeline", dtypes, safety_checker=None, feature_extractor=None
            )
        self.source = config.checkpoint
        self._pipeline = pipeline
        self.network = unet = pipeline.unet
        scheduler = dict(pipeline.scheduler.config)
        self.kind = _kind(config.checkpoint, scheduler)
        self.schedule = self._table = VPSchedule.from_config(scheduler)
        self.grids = VPGrids(self._table, scheduler)
        self.codec = KLCodec(pipeline.vae, chunk=config.decode_chunk)
        self.text = CLIPText(pipeline.tokenizer, pipeline.text_encoder)
        self._modules = {"unet": unet, "vae": pipeline.vae, "text_encoder": pipeline.text_encoder}
        if unet.config.in_channels != self.codec.channels:
            raise UserError(
                f"model.checkpoint={config.checkpoint}: its network takes {unet.config.in_channels} channels, its "
                f"latents have {self.codec.channels}: an inpainting, depth or upscaling model. Use a text-to-image one."
            )
        size = unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.image_size = (height * self.codec.factor, width * self.codec.factor)
        self.freeze()
        if config.checkpoint_blocks:
            unet.enable_gradient_checkpointing()
            pipeline.vae.enable_gradient_checkpointing()

    def components(self) -> dict[str, nn.Module]:
        return self._modules

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """See `DiffusionModel.predict`. The UNet is told the table index, t = (i + 1)/T <-> i."""
        dtype = self.network_dtype
        index = self._table.index(t).float()
        text = cond.tensors["text"].to(dtype)
        return network(x_t.to(dtype), index, encoder_hidden_states=text, return_dict=False)[0].to(x_t.dtype)

    def to_pipeline(self) -> Any:
        """A StableDiffusionPipeline around these modules; one of another dtype than the network's is a cast copy.

        A stock pipeline knows one dtype only, and it must not change the precision that training goes on in.
        """
        dtype = self.network_dtype
        modules = {
            name: module if next(module.parameters()).dtype == dtype else copy.deepcopy(module).to(dtype)
            for name, module in self.components().items()
        }
        return type(self._pipeline)(**{**self._pipeline.components, **modules}, requires_safety_checker=False)


def _kind(checkpoint: str, scheduler: dict[str, Any]) -> Prediction:
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
