"""Qwen-Image: a transformer over packed 2x2 latents, Qwen2.5-VL text, rectified flow with a shift by size."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_unshuffle

from align.models._encoders import compact
from align.models._flow import FlowGrids, rows_of_t
from align.models._frames import FrameCodec
from align.models._layouts import transformer
from align.models._load import CheckpointConfig
from align.models._pack import pack, unpack
from align.models._pipeline import PipelineModel
from align.models._published import Published
from align.models._text import CachedTextEncoder
from align.models._text_sizes import QWEN25_VL_7B
from align.models._tokens import Tokenizer
from samplers import FlowSchedule, Prediction

SAMPLE_SIZE = 128  # latents a side: QwenImagePipeline.default_sample_size
UNCONDITIONAL = " "  # the negative prompt of its model card


class QwenImageConfig(CheckpointConfig):
    """A Qwen-Image checkpoint."""

    name: Literal["qwen_image"] = "qwen_image"
    sdpa_only: ClassVar[str] = "Qwen-Image masks the padding of prompts, which the other kernels ignore or refuse."
    text_tokens: int = Field(default=512, ge=1)
    """Length that prompts are padded and cut to."""


class QwenImageText(CachedTextEncoder):
    """The tensor "text": the last hidden state of Qwen2.5-VL, (B, L, 3584), padding after it; "mask": (B, L).

    Prompts stand in the pipeline's template, of which only what follows the system's message is kept.
    """

    def __init__(self, pipeline: Any, text_tokens: int):
        super().__init__(pipeline.text_encoder)
        self.template: str = pipeline.prompt_template_encode
        self.dropped: int = pipeline.prompt_template_encode_start_idx
        self.length = text_tokens
        self.tokenizer = Tokenizer(pipeline.tokenizer, text_tokens + self.dropped, num_ends=0)

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer([self.template.format(prompt or UNCONDITIONAL) for prompt in prompts], self.device)
        out = self.modules[0](input_ids=tokens.ids, attention_mask=tokens.mask, output_hidden_states=True)
        whole = compact(out.hidden_states[-1], tokens.mask, self.length + self.dropped)
        return {name: tensor[:, self.dropped :] for name, tensor in whole.items()}


class QwenImage(PipelineModel):
    """The bundle of a QwenImagePipeline. Its guided output keeps the norm of the conditional one, token by token."""

    Config = QwenImageConfig
    pipelines = ("QwenImagePipeline",)
    network_class = "QwenImageTransformer2DModel"
    vae_class = "AutoencoderKLQwenImage"
    patch = 2
    # The attention projections of image and text tokens.
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    guides_in_one_call = False
    layouts: ClassVar = {"comfyui": transformer}
    published = (
        Published(
            "Qwen/Qwen-Image",
            "apache-2.0",
            billions=20.4304,
            text_billions=8.29,
            scheduler={
                "_class_name": "FlowMatchEulerDiscreteScheduler",
                "num_train_timesteps": 1000,
                "use_dynamic_shifting": True,
                "base_shift": 0.5,
                "max_shift": 0.9,
                "base_image_seq_len": 256,
                "max_image_seq_len": 8192,
                "shift": 1.0,
                "shift_terminal": 0.02,
            },
            sampling={"num_steps": 50, "step_rule": "euler", "guidance_scale": 4.0},
            latent=(16, 128, 128),
            cond={"text": (512, 3584), "mask": (512,)},
            text={"text_encoder": QWEN25_VL_7B},
        ),
    )

    def assemble(self, config: QwenImageConfig, pipeline: Any) -> None:
        self.kind = Prediction.FLOW
        self.schedule = FlowSchedule()
        self.grids = FlowGrids(dict(pipeline.scheduler.config), self.patch)
        self.codec = FrameCodec(pipeline.vae, chunk=config.decode_chunk)
        self.image_size = (SAMPLE_SIZE * self.codec.factor, SAMPLE_SIZE * self.codec.factor)
        self.rescale = _keep_norm

    @classmethod
    def asked(cls, config: Any, guidance_scale: float) -> dict[str, Any]:
        """Its guidance_scale is for distilled checkpoints; ours is its true_cfg_scale."""
        said = super().asked(config, guidance_scale)
        return {"true_cfg_scale": said.pop("guidance_scale"), "negative_prompt": UNCONDITIONAL, **said}

    def encoder(self, config: QwenImageConfig, pipeline: Any) -> QwenImageText:
        return QwenImageText(pipeline, config.text_tokens)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """See `DiffusionModel.predict`. Each 2x2 latents are one token."""
        dtype = self.network_dtype
        rows, columns = x_t.shape[-2] // 2, x_t.shape[-1] // 2
        out = network(
            hidden_states=pack(x_t.to(dtype)),
            timestep=rows_of_t(t, x_t),
            encoder_hidden_states=cond.tensors["text"].to(dtype),
            encoder_hidden_states_mask=cond.tensors["mask"],
            img_shapes=[[(1, rows, columns)]] * len(x_t),
            return_dict=False,
        )[0]
        return unpack(out, rows, columns).to(x_t.dtype)


def _keep_norm(guided: Tensor, conditional: Tensor) -> Tensor:
    """`guided` with each token's norm as in `conditional`; both (B, C, h, w), a token being 2x2 latents."""
    ratio = _token_norm(conditional) / _token_norm(guided)
    return guided * interpolate(ratio, scale_factor=2, mode="nearest")


def _token_norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(pixel_unshuffle(x, 2), dim=1, keepdim=True)
