"""Sana: a linear-attention transformer on 32x smaller latents, Gemma text, rectified flow with DPM-Solver++."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from align.errors import UserError
from align.models._base import Posterior
from align.models._codec import KLCodec
from align.models._load import CheckpointConfig
from align.models._pipeline import PipelineModel
from align.models._published import Published
from align.models._text import CachedTextEncoder
from align.models._text_sizes import GEMMA2_2B
from align.models._tokens import Tokenizer
from samplers import FlowSchedule, Grid, Prediction, TensorCond, grids, shift

DC_VAE = {
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "upsample_block_type": "interpolate",
    "downsample_block_type": "conv",
    "scaling_factor": 0.41407,
}


class SanaConfig(CheckpointConfig):
    """A Sana checkpoint."""

    name: Literal["sana"] = "sana"
    sdpa_only: ClassVar[str] = "Sana's attention is linear, which the other kernels would replace by a softmax."
    text_tokens: int = Field(default=300, ge=2)
    """Length that prompts are padded and cut to."""


@dataclass(frozen=True)
class SanaGrids:
    """DPMSolverMultistepScheduler's times with use_flow_sigmas, for every step rule: (1 - 1/T) i/N, shifted."""

    config: Mapping[str, Any]

    def __call__(self, num_steps: int, latent_shape: Sequence[int], step_rule: str, spacing: str | None = None) -> Grid:
        if spacing is not None:
            raise UserError(f"sampling.spacing={spacing}: a flow model has times of its own. Remove it.")
        largest = 1 - 1 / self.config.get("num_train_timesteps", 1000)
        linear = torch.linspace(largest, 0, num_steps + 1, dtype=torch.float64)
        grid = Grid(shift(linear, self.config.get("flow_shift", 1.0)))
        return grids.doubled(grid) if step_rule == "heun" else grid


PLAIN = "\0"
"""Begins a prompt, for the cache of encodings too, that has no instruction before it."""


class SanaText(CachedTextEncoder):
    """The tensor "text": Gemma's states of the lower-case prompt, (B, L, 2304); "mask": (B, L), 0 at padding.

    Prompts stand behind the pipeline's instruction to enrich them; of its states only the first is kept. The
    unconditional row and negative prompts have no instruction.
    """

    def __init__(self, pipeline: Any, text_tokens: int):
        super().__init__(pipeline.text_encoder)
        default = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
        self.instruction = "\n".join(default)
        pipeline.tokenizer.padding_side = "right"
        instructed = text_tokens + len(pipeline.tokenizer.encode(self.instruction)) - 2
        self.plain = Tokenizer(pipeline.tokenizer, text_tokens, num_ends=0)
        self.instructed = Tokenizer(pipeline.tokenizer, instructed, num_ends=0)

    def negative(self, prompt: str) -> TensorCond:
        return self.encode([PLAIN + prompt])

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        rows = [self._row(prompt.lower().strip()) for prompt in prompts]
        return {"text": torch.cat([text for text, _ in rows]), "mask": torch.cat([mask for _, mask in rows])}

    def _row(self, prompt: str) -> tuple[Tensor, Tensor]:
        """(1, L, D) and (1, L)."""
        if prompt and not prompt.startswith(PLAIN):
            tokens = self.instructed([self.instruction + prompt], self.device)
        else:
            tokens = self.plain([prompt.removeprefix(PLAIN)], self.device)
        states = self.modules[0](tokens.ids, attention_mask=tokens.mask)[0]
        kept = [0, *range(-self.plain.length + 1, 0)]
        return states[:, kept], tokens.mask[:, kept]


class DCCodec(KLCodec):
    """A deep-compression autoencoder: deterministic, its posterior is a point."""

    def sizes(self) -> tuple[int, int]:
        return 2 ** (len(self.vae.config.encoder_block_out_channels) - 1), self.vae.config.latent_channels

    def posterior(self, image: Tensor) -> Posterior:
        mean = self.vae.encode(image, return_dict=False)[0]
        return Posterior(mean, torch.full_like(mean, -torch.inf))


class Sana(PipelineModel):
    """The bundle of a SanaPipeline. Images have the size that is asked for: no binning of aspect ratios."""

    Config = SanaConfig
    pipelines = ("SanaPipeline",)
    network_class = "SanaTransformer2DModel"
    vae_class = "AutoencoderDC"
    # The attention projections, as in diffusers' LoRA recipe.
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    published = (
        Published(
            "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
            "nsclv2-custom",
            billions=1.6045,
            text_billions=2.61,
            scheduler={
                "_class_name": "DPMSolverMultistepScheduler",
                "num_train_timesteps": 1000,
                "prediction_type": "flow_prediction",
                "use_flow_sigmas": True,
                "flow_shift": 3.0,
                "algorithm_type": "dpmsolver++",
                "solver_order": 2,
            },
            sampling={"num_steps": 20, "step_rule": "dpmpp_2m", "guidance_scale": 4.5},
            latent=(32, 32, 32),
            cond={"text": (300, 2304), "mask": (300,)},
            text={"text_encoder": GEMMA2_2B},
            vae=DC_VAE,
        ),
    )

    def assemble(self, config: SanaConfig, pipeline: Any) -> None:
        network = pipeline.transformer.config
        self.kind = Prediction.FLOW
        self.schedule = FlowSchedule()
        scheduler = dict(pipeline.scheduler.config)
        if not scheduler.get("use_flow_sigmas"):
            raise UserError(
                f"model.checkpoint={config.checkpoint}: its scheduler has no use_flow_sigmas, and of a Sana only "
                "DPMSolverMultistepScheduler with it is known. Give the checkpoint that scheduler, flow_shift included."
            )
        self.grids = SanaGrids(scheduler)
        self.codec = DCCodec(pipeline.vae, chunk=config.decode_chunk)
        self.patch = network.patch_size
        self.image_size = (network.sample_size * self.codec.factor, network.sample_size * self.codec.factor)
        self._scale = network.timestep_scale

    @classmethod
    def asked(cls, config: Any, guidance_scale: float) -> dict[str, Any]:
        """Images of the size that is asked for, and prompts as they are written."""
        return {**super().asked(config, guidance_scale), "use_resolution_binning": False, "clean_caption": False}

    def encoder(self, config: SanaConfig, pipeline: Any) -> SanaText:
        return SanaText(pipeline, config.text_tokens)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """See `DiffusionModel.predict`. The transformer is told 1000 t without its fraction, as its scheduler does."""
        dtype = self.network_dtype
        whole = (1000 * t + 1e-6).floor() * self._scale
        return network(
            x_t.to(dtype),
            encoder_hidden_states=cond.tensors["text"].to(dtype),
            encoder_attention_mask=cond.tensors["mask"],
            timestep=whole.to(x_t.device, torch.float32).expand(len(x_t)),
            return_dict=False,
        )[0].to(x_t.dtype)
