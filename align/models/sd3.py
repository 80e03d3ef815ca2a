"""Stable Diffusion 3 and 3.5: a transformer over text and image tokens, two CLIPs, an optional T5, rectified flow."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from align.models._codec import KLCodec
from align.models._encoders import clip_states, t5_states
from align.models._flow import FlowGrids, rows_of_t
from align.models._layouts import transformer
from align.models._load import CheckpointConfig
from align.models._pipeline import PipelineModel
from align.models._published import Published, flow_vae
from align.models._shared_tokens import accept_last_count
from align.models._text import CachedTextEncoder
from align.models._text_sizes import CLIP_BIG_G, CLIP_L_PROJECTED, T5_XXL
from align.models._tokens import Tokenizer
from samplers import FlowSchedule, Prediction

SHIFTED = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432}
COMMON: dict[str, Any] = {
    "licence": "stabilityai-ai-community",
    "scheduler": SHIFTED,
    "latent": (16, 128, 128),
    "cond": {"text": (333, 4096), "pooled": (2048,)},
    "text": {"text_encoder": CLIP_L_PROJECTED, "text_encoder_2": CLIP_BIG_G, "text_encoder_3": T5_XXL},
    "vae": flow_vae(1.5305, 0.0609),
}


class SD3Config(CheckpointConfig):
    """A Stable Diffusion 3 or 3.5 checkpoint."""

    name: Literal["sd3"] = "sd3"
    t5: bool = True
    """Load the T5 encoder, if the checkpoint has one. Without it: 9.5 GB less, long prompts followed less closely."""
    t5_tokens: int = Field(default=256, ge=1)
    """Length that prompts are padded and cut to for T5."""


class SD3Text(CachedTextEncoder):
    """The tensor "text": both CLIPs' states side by side, T5's (or zeros) after them; "pooled": their projections."""

    def __init__(self, pipeline: Any, t5_tokens: int):
        self.clips = [
            (Tokenizer(tokenizer, pipeline.tokenizer_max_length), encoder)
            for tokenizer, encoder in (
                (pipeline.tokenizer, pipeline.text_encoder),
                (pipeline.tokenizer_2, pipeline.text_encoder_2),
            )
        ]
        self.t5 = pipeline.text_encoder_3
        self.t5_tokens = t5_tokens
        self.t5_tokenizer = Tokenizer(pipeline.tokenizer_3, t5_tokens)
        self.width = pipeline.transformer.config.joint_attention_dim
        super().__init__(*(encoder for _, encoder in self.clips), *([] if self.t5 is None else [self.t5]))

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        device = self.device
        states, pooled = zip(
            *(clip_states(encoder, tokenizer(prompts, device)) for tokenizer, encoder in self.clips), strict=True
        )
        clip = torch.cat(states, -1)
        if self.t5 is None:
            long = clip.new_zeros(len(prompts), self.t5_tokens, self.width)
        else:
            long = t5_states(self.t5, self.t5_tokenizer(prompts, device), masked=False)
        clip = nn.functional.pad(clip, (0, self.width - clip.shape[-1]))
        return {"text": torch.cat([clip, long.to(clip.dtype)], 1), "pooled": torch.cat(pooled, -1)}


class StableDiffusion3(PipelineModel):
    """The bundle of a StableDiffusion3Pipeline."""

    Config = SD3Config
    pipelines = ("StableDiffusion3Pipeline",)
    network_class = "SD3Transformer2DModel"
    small_decoders = ("madebyollin/taesd3",)
    text_names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    unused = ("image_encoder", "feature_extractor")
    # The attention projections of image and text tokens, as in diffusers' LoRA recipe.
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    layouts: ClassVar = {"comfyui": transformer}
    num_equal = 1
    """Tokens at the text's end that are all the same: the zeros in place of T5's states."""
    published = (
        Published(
            "stabilityai/stable-diffusion-3-medium-diffusers",
            billions=2.0283,
            text_billions=5.58,
            network={**MEDIUM, "pos_embed_max_size": 192},
            sampling={"num_steps": 28, "step_rule": "euler", "guidance_scale": 7.0},
            **COMMON,
        ),
        Published(
            "stabilityai/stable-diffusion-3.5-medium",
            billions=2.2432,
            text_billions=5.58,
            network={
                **MEDIUM,
                "pos_embed_max_size": 384,
                "qk_norm": "rms_norm",
                "dual_attention_layers": tuple(range(13)),
            },
            sampling={"num_steps": 40, "step_rule": "euler", "guidance_scale": 4.5},
            **COMMON,
        ),
        Published(
            "stabilityai/stable-diffusion-3.5-large",
            billions=8.0566,
            text_billions=5.58,
            network={**LARGE, "pos_embed_max_size": 192, "qk_norm": "rms_norm"},
            sampling={"num_steps": 28, "step_rule": "euler", "guidance_scale": 3.5},
            **COMMON,
        ),
    )

    def left_out(self, config: SD3Config) -> tuple[str, ...]:
        return () if config.t5 else ("text_encoder_3", "tokenizer_3")

    def assemble(self, config: SD3Config, pipeline: Any) -> None:
        network = pipeline.transformer.config
        self.kind = Prediction.FLOW
        self.schedule = FlowSchedule()
        self.patch = network.patch_size
        self.grids = FlowGrids(dict(pipeline.scheduler.config), self.patch, ends_at_step=False)
        self.codec = KLCodec(pipeline.vae, chunk=config.decode_chunk)
        self.image_size = (network.sample_size * self.codec.factor, network.sample_size * self.codec.factor)

    def encoder(self, config: SD3Config, pipeline: Any) -> SD3Text:
        if pipeline.text_encoder_3 is None and config.attention == "sdpa":
            self.num_equal = config.t5_tokens
            accept_last_count(pipeline.transformer)
        return SD3Text(pipeline, config.t5_tokens)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """See `DiffusionModel.predict`. The transformer is told 1000 t.

        The zeros in place of T5's states go through as one token where they outnumber all others. Where they do not,
        less is saved, and the mask that it takes keeps torch from its flash kernel.
        """
        dtype = self.network_dtype
        text, count = cond.tensors["text"], self.num_equal
        others = text.shape[1] - count + x_t[0, 0].numel() // self.patch**2
        if count > others:
            text = text[:, : text.shape[1] - count + 1]
        else:
            count = 1
        return network(
            x_t.to(dtype),
            timestep=rows_of_t(t, x_t, 1000.0),
            encoder_hidden_states=text.to(dtype),
            pooled_projections=cond.tensors["pooled"].to(dtype),
            joint_attention_kwargs={"last_count": count} if count > 1 else None,
            return_dict=False,
        )[0].to(x_t.dtype)
