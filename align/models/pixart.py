"""PixArt-alpha and PixArt-Sigma: a transformer with cross-attention to T5, a VP table, DPM-Solver++."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from align.models._codec import KLCodec
from align.models._encoders import t5_states
from align.models._grids import VPGrids
from align.models._layouts import transformer
from align.models._load import CheckpointConfig
from align.models._pipeline import PipelineModel
from align.models._plain_adapter import attach
from align.models._published import KL_VAE, Published
from align.models._text import CachedTextEncoder
from align.models._text_sizes import T5_XXL
from align.models._tokens import Tokenizer
from align.models._vp import vp_kind
from samplers import VPSchedule

TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}
COMMON: dict[str, Any] = {
    "licence": "openrail++",
    "scheduler": {
        "_class_name": "DPMSolverMultistepScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "timestep_spacing": "linspace",
    },
    "sampling": {"num_steps": 20, "step_rule": "dpmpp_2m", "guidance_scale": 4.5},
    "latent": (4, 128, 128),
    "text": {"text_encoder": T5_XXL},
}


class PixArtConfig(CheckpointConfig):
    """A PixArt-alpha or PixArt-Sigma checkpoint."""

    name: Literal["pixart"] = "pixart"
    t5_tokens: int | None = Field(default=None, ge=1)
    """Length that prompts are padded and cut to for T5. Default: 120 for alpha, 300 for Sigma."""


class PixArtText(CachedTextEncoder):
    """The tensor "text": T5's states of the lower-case prompt, (B, L, 4096); "mask": (B, L), 0 at padding."""

    def __init__(self, pipeline: Any, t5_tokens: int):
        super().__init__(pipeline.text_encoder)
        self.tokenizer = Tokenizer(pipeline.tokenizer, t5_tokens)

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer([prompt.lower().strip() for prompt in prompts], self.device)
        return {"text": t5_states(self.modules[0], tokens, masked=True), "mask": tokens.mask}


class PixArt(PipelineModel):
    """The bundle of a PixArtAlphaPipeline or PixArtSigmaPipeline.

    Images have the size that is asked for: no binning of aspect ratios.
    """

    Config = PixArtConfig
    pipelines = ("PixArtSigmaPipeline", "PixArtAlphaPipeline")
    network_class = "PixArtTransformer2DModel"
    small_decoders = ("madebyollin/taesd", "madebyollin/taesdxl")  # alpha has SD's autoencoder, Sigma SDXL's
    # The attention projections, as in diffusers' LoRA recipes.
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    layouts: ClassVar = {"comfyui": transformer}
    published = (
        Published(
            "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
            billions=0.6109,
            text_billions=4.76,
            cond={"text": (300, 4096), "mask": (300,)},
            network={"caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False},
            vae={**KL_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
            **COMMON,
        ),
        Published(
            "PixArt-alpha/PixArt-XL-2-1024-MS",
            billions=0.6114,
            text_billions=4.76,
            cond={"text": (120, 4096), "mask": (120,)},
            network={"caption_channels": 4096},
            vae={**KL_VAE, "scaling_factor": 0.18215},
            **COMMON,
        ),
    )

    def assemble(self, config: PixArtConfig, pipeline: Any) -> None:
        network, scheduler = pipeline.transformer.config, dict(pipeline.scheduler.config)
        self.kind = vp_kind(config.checkpoint, scheduler)
        self.schedule = self._table = VPSchedule.from_config(scheduler)
        self.grids = VPGrids(self._table, scheduler)
        self.codec = KLCodec(pipeline.vae, chunk=config.decode_chunk)
        self.patch = network.patch_size
        self.image_size = (network.sample_size * self.codec.factor, network.sample_size * self.codec.factor)
        self._told_size = pipeline.transformer.use_additional_conditions

    @classmethod
    def asked(cls, config: Any, guidance_scale: float) -> dict[str, Any]:
        """Images of the size that is asked for, and prompts as they are written."""
        return {**super().asked(config, guidance_scale), "use_resolution_binning": False, "clean_caption": False}

    def encoder(self, config: PixArtConfig, pipeline: Any) -> PixArtText:
        return PixArtText(pipeline, config.t5_tokens or TOKENS[type(pipeline).__name__])

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """See `DiffusionModel.predict`. Of an output with a learned variance the first half is the prediction."""
        dtype = self.network_dtype
        height, width = (side * self.codec.factor for side in x_t.shape[-2:])
        told = {"resolution": [height, width], "aspect_ratio": [height / width]}
        out = network(
            x_t.to(dtype),
            encoder_hidden_states=cond.tensors["text"].to(dtype),
            encoder_attention_mask=cond.tensors["mask"],
            timestep=self._table.index(t).to(x_t.device, torch.float32).expand(len(x_t)),
            added_cond_kwargs={
                name: x_t.new_tensor(numbers).to(dtype).expand(len(x_t), -1) if self._told_size else None
                for name, numbers in told.items()
            },
            return_dict=False,
        )[0]
        return out[:, : x_t.shape[1]].to(x_t.dtype)

    def load_adapter(self, pipeline: Any, path: Path, strength: float = 1.0) -> None:
        """diffusers' PixArt pipelines have no load_lora_weights: the file goes onto the transformer itself."""
        attach(pipeline.transformer, path, component="transformer", strength=strength)
