"""Z-Image and Z-Image-Turbo: one transformer over text and image tokens, Qwen3 text, rectified flow."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from align.models._codec import KLCodec
from align.models._encoders import ChatTokenizer, compact
from align.models._flow import FlowGrids, rows_of_t
from align.models._layouts import transformer
from align.models._load import CheckpointConfig
from align.models._pipeline import PipelineModel
from align.models._published import Published, flow_vae
from align.models._text import CachedTextEncoder
from align.models._text_sizes import QWEN3_4B
from samplers import FlowSchedule, Prediction

IMAGE_SIZE = (1024, 1024)  # ZImagePipeline's default
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "use_dynamic_shifting": False}
COMMON: dict[str, Any] = {
    "licence": "apache-2.0",
    "latent": (16, 128, 128),
    "cond": {"text": (512, 2560), "mask": (512,)},
    "text": {"text_encoder": QWEN3_4B},
    "vae": flow_vae(0.3611, 0.1159),
}


class ZImageConfig(CheckpointConfig):
    """A Z-Image checkpoint. Its pipeline counts guidance from 0: sampling.guidance_scale is one more here."""

    name: Literal["z_image"] = "z_image"
    sdpa_only: ClassVar[str] = "Z-Image masks the padding of prompts, which the other kernels ignore or refuse."
    text_tokens: int = Field(default=512, ge=1)
    """Length that prompts are padded and cut to, with the chat template around them."""


class ZImageText(CachedTextEncoder):
    """The tensor "text": Qwen3's last hidden state but one, padding after it, (B, L, 2560); "mask": (B, L)."""

    def __init__(self, pipeline: Any, text_tokens: int):
        super().__init__(pipeline.text_encoder)
        self.tokenizer = ChatTokenizer(pipeline.tokenizer, text_tokens, thinking=True)

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer(prompts, self.device)
        out = self.modules[0](input_ids=tokens.ids, attention_mask=tokens.mask.bool(), output_hidden_states=True)
        return compact(out.hidden_states[-2], tokens.mask, tokens.mask.shape[1])


class ZImage(PipelineModel):
    """The bundle of a ZImagePipeline."""

    Config = ZImageConfig
    pipelines = ("ZImagePipeline",)
    network_class = "ZImageTransformer2DModel"
    small_decoders = ("madebyollin/taef1",)
    patch = 2
    # The attention projections, as in diffusers' LoRA recipe.
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    guides_in_one_call = False
    layouts: ClassVar = {"comfyui": transformer}
    published = (
        Published(
            "Tongyi-MAI/Z-Image-Turbo",
            billions=6.1549,
            text_billions=4.02,
            scheduler={**FLOW, "shift": 3.0},
            sampling={"num_steps": 8, "step_rule": "euler", "guidance_scale": 1.0},
            **COMMON,
        ),
        Published(
            "Tongyi-MAI/Z-Image",
            billions=6.1549,
            text_billions=4.02,
            scheduler={**FLOW, "shift": 6.0},
            sampling={"num_steps": 50, "step_rule": "euler", "guidance_scale": 5.0},
            **COMMON,
        ),
    )

    def assemble(self, config: ZImageConfig, pipeline: Any) -> None:
        self.kind = Prediction.FLOW
        self.schedule = FlowSchedule()
        self.grids = FlowGrids(dict(pipeline.scheduler.config), self.patch)
        self.codec = KLCodec(pipeline.vae, chunk=config.decode_chunk)
        self.image_size = IMAGE_SIZE

    @classmethod
    def asked(cls, config: Any, guidance_scale: float) -> dict[str, Any]:
        """It counts guidance from 0."""
        return super().asked(config, guidance_scale - 1)

    def encoder(self, config: ZImageConfig, pipeline: Any) -> ZImageText:
        return ZImageText(pipeline, config.text_tokens)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """See `DiffusionModel.predict`. The network's own time is 1 - t, and it predicts x0 - eps."""
        dtype = self.network_dtype
        text, mask = cond.tensors["text"].to(dtype), cond.tensors["mask"]
        lengths = [text.shape[1]] * len(text) if text.is_meta else mask.sum(1).tolist()
        out = network(
            list(x_t.to(dtype).unsqueeze(2).unbind()),
            rows_of_t(1 - t, x_t),
            [row[:length] for row, length in zip(text, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(list(out)).squeeze(2).to(x_t.dtype)
