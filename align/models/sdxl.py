"""SDXL and SDXL-Turbo: a UNet told the image's size and crop, two text encoders, a VP table."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from align.errors import UserError
from align.models._codec import KLCodec
from align.models._encoders import clip_states
from align.models._grids import VPGrids
from align.models._layouts import Layout, sgm_unet
from align.models._load import CheckpointConfig
from align.models._network_config import network_config
from align.models._pipeline import PipelineModel
from align.models._published import KL_VAE, Published
from align.models._text import CachedTextEncoder
from align.models._text_sizes import CLIP_BIG_G, CLIP_L
from align.models._tokens import Tokenizer, clip_length
from align.models._vp import SD_BETAS, unet_image_size, vp_kind
from samplers import TensorCond, VPSchedule

NETWORK: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
COMMON: dict[str, Any] = {
    "cond": {"text": (77, 2048), "pooled": (1280,)},
    "text": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_BIG_G},
    "vae": {**KL_VAE, "sample_size": 1024, "latent_channels": 4, "scaling_factor": 0.13025, "force_upcast": True},
}


class SDXLConfig(CheckpointConfig):
    """An SDXL or SDXL-Turbo checkpoint."""

    name: Literal["sdxl"] = "sdxl"


class SDXLText(CachedTextEncoder):
    """The states of both encoders side by side, "text" (B, L, 768 + 1280), and the second one's projection, "pooled".

    Where the checkpoint says force_zeros_for_empty_prompt, the unconditional row is zeros.
    """

    def __init__(self, pipeline: Any):
        pairs = ((pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2))
        self.encoders = [(Tokenizer(tokenizer, clip_length(tokenizer, model)), model) for tokenizer, model in pairs]
        self.zeros = bool(pipeline.config.force_zeros_for_empty_prompt)
        super().__init__(*(model for _, model in self.encoders))

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        device = self.device
        states, outputs = zip(
            *(clip_states(model, tokenizer(prompts, device)) for tokenizer, model in self.encoders), strict=True
        )
        tensors = {"text": torch.cat(states, -1), "pooled": outputs[-1]}
        if not self.zeros:
            return tensors
        kept = torch.tensor([prompt != "" for prompt in prompts], device=device)
        return {name: tensor * kept.view(-1, *[1] * (tensor.ndim - 1)) for name, tensor in tensors.items()}


class StableDiffusionXL(PipelineModel):
    """The bundle of a StableDiffusionXLPipeline."""

    Config = SDXLConfig
    pipelines = ("StableDiffusionXLPipeline",)
    network_class = "UNet2DConditionModel"
    small_decoders = ("madebyollin/taesdxl",)
    network_name = "unet"
    text_names = ("text_encoder", "text_encoder_2")
    unused = ("image_encoder", "feature_extractor")
    # The attention projections, as in the Diffusion-DPO and diffusers LoRA recipes.
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    layouts: ClassVar = {"kohya": sgm_unet, "comfyui": sgm_unet}
    published = (
        Published(
            "stabilityai/stable-diffusion-xl-base-1.0",
            "openrail++",
            billions=2.5675,
            text_billions=0.82,
            scheduler={"_class_name": "EulerDiscreteScheduler", **SD_BETAS, "timestep_spacing": "leading"},
            sampling={"num_steps": 30, "step_rule": "euler", "guidance_scale": 5.0},
            latent=(4, 128, 128),
            network={**NETWORK, "sample_size": 128},
            **COMMON,
        ),
        Published(
            "stabilityai/sdxl-turbo",
            "sai-nc-community",
            billions=2.5675,
            text_billions=0.82,
            scheduler={"_class_name": "EulerAncestralDiscreteScheduler", **SD_BETAS, "timestep_spacing": "trailing"},
            sampling={"num_steps": 1, "step_rule": "euler_ancestral", "guidance_scale": 1.0},
            latent=(4, 64, 64),
            network={**NETWORK, "sample_size": 64},
            **COMMON,
        ),
    )

    @classmethod
    def layout(cls, format: str, config: SDXLConfig) -> Layout:
        number = network_config(cls, config).get("layers_per_block", 2)
        if not isinstance(number, int):
            raise UserError(f"{config.checkpoint}: its network has blocks of {number} layers, sgm of one number.")
        known: Any = cls.layouts[format]
        return partial(known, layers_per_block=number)

    def assemble(self, config: SDXLConfig, pipeline: Any) -> None:
        if pipeline.vae.config.force_upcast and pipeline.vae.dtype == torch.float16:
            pipeline.vae.float()  # its activations exceed fp16's 65504; the checkpoint says so
        scheduler = dict(pipeline.scheduler.config)
        self.kind = vp_kind(config.checkpoint, scheduler)
        self.schedule = self._table = VPSchedule.from_config(scheduler)
        self.grids = VPGrids(self._table, scheduler)
        self.codec = KLCodec(pipeline.vae, chunk=config.decode_chunk)
        self.image_size = unet_image_size(config.checkpoint, pipeline.unet, self.codec)

    def encoder(self, config: SDXLConfig, pipeline: Any) -> SDXLText:
        return SDXLText(pipeline)

    def with_sizes(self, cond: TensorCond, sizes: Tensor) -> TensorCond:
        """`cond` for images of which the network is told where they come from: (B, 6), height and width before the
        crop, the crop's top and left, height and width of the target (Podell et al., arXiv 2307.01952, section 2.2)."""
        return TensorCond({**cond.tensors, "sizes": sizes})

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """See `DiffusionModel.predict`. The UNet is told the table index and, where cond has no sizes, that the image
        is whole, at its own."""
        dtype = self.network_dtype
        height, width = (side * self.codec.factor for side in x_t.shape[-2:])
        whole = torch.tensor([[height, width, 0, 0, height, width]])
        sizes = cond.tensors.get("sizes", whole).to(x_t.device, dtype)
        return network(
            x_t.to(dtype),
            self._table.index(t).float(),
            encoder_hidden_states=cond.tensors["text"].to(dtype),
            added_cond_kwargs={
                "text_embeds": cond.tensors["pooled"].to(dtype),
                "time_ids": sizes.expand(len(x_t), -1),  # original size, crop from the top left, target size
            },
            return_dict=False,
        )[0].to(x_t.dtype)
