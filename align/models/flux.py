"""FLUX.1 dev and schnell: a transformer over packed 2x2 latents, CLIP and T5, rectified flow with a shift by size."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from align.models import _layouts
from align.models._codec import KLCodec
from align.models._encoders import clip_pooled, t5_states
from align.models._flow import FlowGrids, rows_of_t
from align.models._load import CheckpointConfig
from align.models._pack import pack, unpack
from align.models._pipeline import PipelineModel
from align.models._published import Published, flow_vae
from align.models._text import CachedTextEncoder
from align.models._text_sizes import CLIP_L, T5_XXL
from align.models._tokens import Tokenizer
from samplers import FlowSchedule, Prediction

SAMPLE_SIZE = 128  # latents a side that it was trained at: FluxPipeline.default_sample_size
SHIFT = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, **SHIFT}
COMMON: dict[str, Any] = {
    "latent": (16, 128, 128),
    "vae": flow_vae(0.3611, 0.1159),
    "text": {"text_encoder": CLIP_L, "text_encoder_2": T5_XXL},
}


class FluxConfig(CheckpointConfig):
    """A FLUX.1 checkpoint."""

    name: Literal["flux"] = "flux"
    guidance: float = Field(default=3.5, ge=0)
    """The distilled guidance that FLUX.1-dev is told, an input of the network (schnell has none). It stands in for
    sampling.guidance_scale, which is 1 then."""
    t5_tokens: int | None = Field(default=None, ge=1)
    """Length that prompts are padded and cut to for T5, which reads the padding too. Default: 512 for dev, 256 for
    schnell, which was not trained at more."""


class FluxText(CachedTextEncoder):
    """The tensor "text": T5's states, (B, L, 4096); "pooled": CLIP's state at the end of the prompt, (B, 768)."""

    def __init__(self, pipeline: Any, t5_tokens: int):
        self.clip, self.t5 = pipeline.text_encoder, pipeline.text_encoder_2
        self.clip_tokenizer = Tokenizer(pipeline.tokenizer, pipeline.tokenizer_max_length)
        self.t5_tokenizer = Tokenizer(pipeline.tokenizer_2, t5_tokens)
        super().__init__(self.clip, self.t5)

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        device = self.device
        return {
            "text": t5_states(self.t5, self.t5_tokenizer(prompts, device), masked=False),
            "pooled": clip_pooled(self.clip, self.clip_tokenizer(prompts, device)),
        }


class Flux(PipelineModel):
    """The bundle of a FluxPipeline."""

    Config = FluxConfig
    pipelines = ("FluxPipeline",)
    network_class = "FluxTransformer2DModel"
    small_decoders = ("madebyollin/taef1",)
    text_names = ("text_encoder", "text_encoder_2")
    unused = ("image_encoder", "feature_extractor")
    patch = 2
    # The attention projections of image and text tokens, as in diffusers' LoRA recipe.
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    guides_in_one_call = False
    layouts: ClassVar = {"kohya": _layouts.flux, "comfyui": _layouts.transformer}
    published = (
        Published(
            "black-forest-labs/FLUX.1-dev",
            "flux-1-dev-non-commercial-license",
            billions=11.9014,
            text_billions=4.89,
            scheduler={**FLOW, "shift": 3.0, "use_dynamic_shifting": True},
            sampling={"num_steps": 28, "step_rule": "euler", "guidance_scale": 1.0},
            cond={"text": (512, 4096), "pooled": (768,)},
            network={"guidance_embeds": True},
            **COMMON,
        ),
        Published(
            "black-forest-labs/FLUX.1-schnell",
            "apache-2.0",
            billions=11.8914,
            text_billions=4.89,
            scheduler={**FLOW, "shift": 1.0, "use_dynamic_shifting": False},
            sampling={"num_steps": 4, "step_rule": "euler", "guidance_scale": 1.0},
            cond={"text": (256, 4096), "pooled": (768,)},
            **COMMON,
        ),
    )

    def assemble(self, config: FluxConfig, pipeline: Any) -> None:
        self.kind = Prediction.FLOW
        self.schedule = FlowSchedule()
        self.grids = FlowGrids(dict(pipeline.scheduler.config), self.patch)
        self.codec = KLCodec(pipeline.vae, chunk=config.decode_chunk)
        self.image_size = (SAMPLE_SIZE * self.codec.factor, SAMPLE_SIZE * self.codec.factor)
        self.guidance = config.guidance if pipeline.transformer.config.guidance_embeds else None

    @classmethod
    def asked(cls, config: Any, guidance_scale: float) -> dict[str, Any]:
        """Its guidance_scale is the distilled one; ours is its true_cfg_scale."""
        said = super().asked(config, getattr(config, "guidance", FluxConfig.model_fields["guidance"].default))
        told = [one for one in cls.published if one.checkpoint == config.checkpoint]
        if told and not told[0].network.get("guidance_embeds"):  # schnell, which takes no more
            said.setdefault("max_sequence_length", 256)
        return said if guidance_scale == 1 else said | {"true_cfg_scale": guidance_scale, "negative_prompt": ""}

    def encoder(self, config: FluxConfig, pipeline: Any) -> FluxText:
        return FluxText(pipeline, config.t5_tokens or (256 if self.guidance is None else 512))

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """See `DiffusionModel.predict`. Image tokens are told their row and column, text tokens the origin."""
        dtype = self.network_dtype
        rows, columns = x_t.shape[-2] // 2, x_t.shape[-1] // 2
        places = torch.cartesian_prod(*(torch.arange(count, device=x_t.device) for count in (1, rows, columns)))
        text = cond.tensors["text"].to(dtype)
        guidance = None if self.guidance is None else rows_of_t(torch.tensor(self.guidance), x_t)
        out = network(
            hidden_states=pack(x_t.to(dtype)),
            timestep=rows_of_t(t, x_t),
            guidance=guidance,
            pooled_projections=cond.tensors["pooled"].to(dtype),
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, dtype=dtype, device=x_t.device),
            img_ids=places.to(dtype),
            return_dict=False,
        )[0]
        return unpack(out, rows, columns).to(x_t.dtype)
