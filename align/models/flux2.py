"""FLUX.2-klein: a transformer over normalised 16x smaller latents, Qwen3 text, rectified flow."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from align.models._base import Posterior
from align.models._codec import KLCodec
from align.models._encoders import ChatTokenizer
from align.models._flow import FlowGrids, rows_of_t
from align.models._load import CheckpointConfig
from align.models._pipeline import PipelineModel
from align.models._published import Published
from align.models._text import CachedTextEncoder
from align.models._text_sizes import QWEN3_4B_CAUSAL
from samplers import FlowSchedule, Prediction

SAMPLE_SIZE = 128  # of the autoencoder's latents a side: Flux2KleinPipeline.default_sample_size
SMALL = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
COMMON: dict[str, Any] = {
    "licence": "apache-2.0",
    "scheduler": {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": True,
    },
    "latent": (128, 64, 64),
    "cond": {"text": (512, 7680)},
    "text": {"text_encoder": QWEN3_4B_CAUSAL},
    "network": SMALL,
}


class Flux2Config(CheckpointConfig):
    """A FLUX.2-klein checkpoint."""

    name: Literal["flux2"] = "flux2"
    text_tokens: int = Field(default=512, ge=1)
    """Length that prompts are padded and cut to, with the chat template around them."""
    text_layers: tuple[int, ...] = (9, 18, 27)
    """Hidden states of the text model that are read."""


class Flux2Text(CachedTextEncoder):
    """The tensor "text": the chosen hidden states of Qwen3 side by side, (B, L, 3 x 2560)."""

    def __init__(self, pipeline: Any, text_tokens: int, layers: Sequence[int]):
        super().__init__(pipeline.text_encoder)
        self.tokenizer = ChatTokenizer(pipeline.tokenizer, text_tokens, thinking=False)
        self.layers = layers

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer(prompts, self.device)
        states = self.modules[0](
            input_ids=tokens.ids, attention_mask=tokens.mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        return {"text": torch.cat([states[layer] for layer in self.layers], -1)}


class Flux2Codec(KLCodec):
    """x0: each 2x2 of the autoencoder's latents as one, normalised by the running statistics of its batch norm."""

    def __init__(self, vae: Any, *, chunk: int | None = None):
        super().__init__(vae, chunk=chunk)
        variance = vae.bn.running_var + vae.config.batch_norm_eps
        self.scale, self.shift = variance.rsqrt().view(1, -1, 1, 1), vae.bn.running_mean.view(1, -1, 1, 1)

    def sizes(self) -> tuple[int, int]:
        factor, channels = super().sizes()
        return 2 * factor, 4 * channels

    def posterior(self, image: Tensor) -> Posterior:
        latents = self.vae.encode(image).latent_dist
        return Posterior(pixel_unshuffle(latents.mean, 2), pixel_unshuffle(latents.logvar, 2))

    def image(self, z: Tensor) -> Tensor:
        return self.vae.decode(pixel_shuffle(z, 2), return_dict=False)[0]


class Flux2(PipelineModel):
    """The bundle of a Flux2KleinPipeline."""

    Config = Flux2Config
    pipelines = ("Flux2KleinPipeline",)
    network_class = "Flux2Transformer2DModel"
    guides_in_one_call = False
    takes_negative = False  # but as embeddings
    vae_class = "AutoencoderKLFlux2"
    # The attention projections; in the single-stream blocks those of the inputs, which feed the MLP too.
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        "to_qkv_mlp_proj",
    )
    published = (
        Published(
            "black-forest-labs/FLUX.2-klein-4B",
            billions=3.8755,
            text_billions=4.02,
            sampling={"num_steps": 4, "step_rule": "euler", "guidance_scale": 1.0},
            **COMMON,
        ),
        Published(
            "black-forest-labs/FLUX.2-klein-base-4B",
            billions=3.8755,
            text_billions=4.02,
            sampling={"num_steps": 50, "step_rule": "euler", "guidance_scale": 4.0},
            **COMMON,
        ),
    )

    def assemble(self, config: Flux2Config, pipeline: Any) -> None:
        self.kind = Prediction.FLOW
        self.schedule = FlowSchedule()
        self.grids = FlowGrids(dict(pipeline.scheduler.config), factor=_factor)
        self.codec = Flux2Codec(pipeline.vae, chunk=config.decode_chunk)
        side = SAMPLE_SIZE // 2 * self.codec.factor
        self.image_size = (side, side)

    def encoder(self, config: Flux2Config, pipeline: Any) -> Flux2Text:
        return Flux2Text(pipeline, config.text_tokens, config.text_layers)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """See `DiffusionModel.predict`. Tokens are told (image, row, column, word): one of the last two pairs is 0."""
        dtype, text = self.network_dtype, cond.tensors["text"]
        rows, columns = x_t.shape[-2:]
        out = network(
            hidden_states=x_t.to(dtype).flatten(2).mT,
            timestep=rows_of_t(t, x_t),
            guidance=None,
            encoder_hidden_states=text.to(dtype),
            txt_ids=_places(x_t, 1, 1, 1, text.shape[1]),
            img_ids=_places(x_t, 1, rows, columns, 1),
            return_dict=False,
        )[0]
        return out.mT.unflatten(2, (rows, columns)).to(x_t.dtype)


def _places(like: Tensor, *counts: int) -> Tensor:
    """All (image, row, column, word) within the counts, (their product, 4)."""
    return torch.cartesian_prod(*(torch.arange(count, device=like.device) for count in counts))


def _factor(tokens: int, num_steps: int) -> float:
    """The shift e^mu that the pipeline takes: diffusers' fit of mu to tokens and steps."""
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    return math.exp(compute_empirical_mu(tokens, num_steps))
