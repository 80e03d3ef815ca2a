"""Krea 2, Raw and Turbo: a transformer over text and packed 2x2 latents, layers of Qwen3-VL as text, rectified flow."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from align.models._flow import FlowGrids, rows_of_t
from align.models._frames import FrameCodec
from align.models._layouts import krea2
from align.models._load import CheckpointConfig
from align.models._pack import pack, unpack
from align.models._pipeline import PipelineModel
from align.models._published import Published
from align.models._text import CachedTextEncoder
from align.models._text_sizes import QWEN3_VL_4B
from align.models._tokens import Tokenizer
from samplers import FlowSchedule, Prediction

IMAGE_SIZE = (1024, 1024)  # Krea2Pipeline's default
DISTILLED_SHIFT = math.exp(1.15)  # of Turbo at every size: Krea2Pipeline with is_distilled
COMMON: dict[str, Any] = {
    "licence": "krea-2-community-license",  # commercial use above a revenue needs another one: see the model card
    "billions": 12.8201,
    "text_billions": 4.44,
    "scheduler": {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 6400,
    },
    "latent": (16, 128, 128),
    "cond": {"text": (512, 12, 2560), "mask": (512,)},
    "text": {"text_encoder": QWEN3_VL_4B},
}


class Krea2Config(CheckpointConfig):
    """A Krea 2 checkpoint. Its pipeline counts guidance from 0: sampling.guidance_scale is one more here."""

    name: Literal["krea2"] = "krea2"
    sdpa_only: ClassVar[str] = "Krea 2 masks the padding of prompts, which the other kernels ignore or refuse."
    text_tokens: int = Field(default=512, ge=1)
    """Length that prompts are padded and cut to, with the end of the template behind them."""


class Krea2Text(CachedTextEncoder):
    """The tensor "text": the chosen hidden states of Qwen3-VL token by token, (B, L, 12, 2560); "mask": (B, L).

    Padding stands between the prompt and the end of the pipeline's template, and takes no position. Of the template
    only what follows the system's message is kept.
    """

    def __init__(self, pipeline: Any, text_tokens: int):
        super().__init__(pipeline.text_encoder)
        self.layers: tuple[int, ...] = tuple(pipeline.text_encoder_select_layers)
        self.begin: str = pipeline.prompt_template_encode_prefix
        self.end: str = pipeline.prompt_template_encode_suffix
        self.dropped: int = pipeline.prompt_template_encode_start_idx
        length = text_tokens + self.dropped - pipeline.prompt_template_encode_num_suffix_tokens
        self.tokenizer = Tokenizer(pipeline.tokenizer, length, num_ends=0)

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer([self.begin + prompt for prompt in prompts], self.device)
        end = self.tokenizer.tokenizer([self.end] * len(prompts), return_tensors="pt").to(self.device)
        mask = torch.cat([tokens.mask, end.attention_mask], 1)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        states = self.modules[0](
            input_ids=torch.cat([tokens.ids, end.input_ids], 1),
            attention_mask=mask.bool(),
            position_ids=places.expand(3, -1, -1),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        text = torch.stack([states[layer] for layer in self.layers], 2)
        return {"text": text[:, self.dropped :], "mask": mask[:, self.dropped :]}


class Krea2(PipelineModel):
    """The bundle of a Krea2Pipeline."""

    Config = Krea2Config
    pipelines = ("Krea2Pipeline",)
    network_class = "Krea2Transformer2DModel"
    vae_class = "AutoencoderKLQwenImage"
    patch = 2
    # The attention projections, also of the blocks that fuse the layers of the text.
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    guides_in_one_call = False
    layouts: ClassVar = {"comfyui": krea2}
    published = (
        Published("krea/Krea-2-Raw", sampling={"num_steps": 52, "step_rule": "euler", "guidance_scale": 4.5}, **COMMON),
        Published(
            "krea/Krea-2-Turbo", sampling={"num_steps": 8, "step_rule": "euler", "guidance_scale": 1.0}, **COMMON
        ),
    )

    def assemble(self, config: Krea2Config, pipeline: Any) -> None:
        self.kind = Prediction.FLOW
        self.schedule = FlowSchedule()
        distilled = getattr(pipeline, "config", {}).get("is_distilled", False)
        factor = (lambda tokens, num_steps: DISTILLED_SHIFT) if distilled else None
        self.grids = FlowGrids({"max_image_seq_len": 6400, **pipeline.scheduler.config}, self.patch, factor=factor)
        self.codec = FrameCodec(pipeline.vae, chunk=config.decode_chunk)
        self.image_size = IMAGE_SIZE

    @classmethod
    def asked(cls, config: Any, guidance_scale: float) -> dict[str, Any]:
        """It counts guidance from 0."""
        return super().asked(config, guidance_scale - 1)

    def encoder(self, config: Krea2Config, pipeline: Any) -> Krea2Text:
        return Krea2Text(pipeline, config.text_tokens)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """See `DiffusionModel.predict`. Each 2x2 latents are one token; text stands at the origin of its places."""
        dtype = self.network_dtype
        rows, columns = x_t.shape[-2] // 2, x_t.shape[-1] // 2
        text = cond.tensors["text"].to(dtype)
        out = network(
            hidden_states=pack(x_t.to(dtype)),
            encoder_hidden_states=text,
            timestep=rows_of_t(t, x_t),
            position_ids=_places(text.shape[1], rows, columns, x_t.device),
            encoder_attention_mask=cond.tensors["mask"].bool(),
            return_dict=False,
        )[0]
        return unpack(out, rows, columns).to(x_t.dtype)


def _places(length: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """(length + rows x columns, 3): zeros for the text, then (0, row, column) of each image token."""
    grid = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns))
    return torch.cat([grid.new_zeros(length, 3), grid]).to(device)
