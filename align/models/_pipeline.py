"""What all families that diffusers has a pipeline for share: loading, dtypes, freezing and the way back."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from align.errors import UserError
from align.models._base import DiffusionModel, dtype_of
from align.models._load import CheckpointConfig, load_pipeline
from align.models._network import is_file, load_network, load_weights
from align.models._options import merge_adapter, set_attention
from align.models._published import Published
from align.models._quantize import missing, quantise
from align.models._text import CachedTextEncoder

ADAPTER_FILE = "pytorch_lora_weights.safetensors"


class PipelineModel(DiffusionModel):
    """A bundle around a diffusers pipeline.

    A family sets the class attributes and `lora_targets`, and writes `assemble`, `encoder` and `predict`.
    `pipeline`: a loaded one to wrap as it is, in place of loading the checkpoint.
    """

    Config: ClassVar[type[CheckpointConfig]]
    pipelines: ClassVar[tuple[str, ...]]
    """diffusers' classes that this family is; the first is the class of a single file."""
    network_class: ClassVar[str]
    vae_class: ClassVar[str] = "AutoencoderKL"
    network_name: ClassVar[str] = "transformer"
    text_names: ClassVar[tuple[str, ...]] = ("text_encoder",)
    guides_in_one_call: ClassVar[bool] = True  # of the stock pipeline: both branches, the unprompted rows first
    takes_negative: ClassVar[bool] = True  # of the stock pipeline: a negative_prompt
    unused: ClassVar[tuple[str, ...]] = ()
    """Components of the pipeline that text-to-image training has no use for; they are not loaded."""
    text: CachedTextEncoder
    constructor: ClassVar[dict[str, Any]] = {}
    """Further arguments of the pipeline's constructor."""
    published: ClassVar[tuple[Published, ...]]
    """What `align models` lists, and what the tests hold the family to."""

    def __init__(self, config: Any, pipeline: Any = None):
        if problem := config.attention_problem():  # a recipe's check knows the family only where it is named
            raise UserError(f"model.attention={config.attention}: {problem}")
        if pipeline is None:
            if config.quantize is not None and (problem := missing(config.quantize)):  # a plan needs no package
                raise UserError(f"model.quantize={config.quantize}: {problem}")
            pipeline = self._loaded(config)
        if config.base_adapter is not None:
            merge_adapter(pipeline, config.base_adapter)
        self.source, self.settings = config.checkpoint, config
        self._pipeline = pipeline
        self.network = getattr(pipeline, self.network_name)
        if config.quantize is not None:
            quantise(self.network, config.quantize)
        names = (self.network_name, "vae", *self.text_names)
        self._modules = {name: module for name in names if (module := getattr(pipeline, name, None)) is not None}
        self.assemble(config, pipeline)
        if getattr(pipeline, self.text_names[0], None) is not None:  # without: prompts come encoded, as in a benchmark
            self.text = self.encoder(config, pipeline)
            self.text.offloaded = config.offload_text or config.text_on_cpu
            self.text.stays = config.text_on_cpu
        self.freeze()
        set_attention(self.network, config.attention)
        if config.checkpoint_blocks:
            self.network.enable_gradient_checkpointing()  # type: ignore[operator]
            if pipeline.vae._supports_gradient_checkpointing:
                pipeline.vae.enable_gradient_checkpointing()

    def _loaded(self, config: Any) -> Any:
        absent = dict.fromkeys((*self.unused, *self.left_out(config)))
        dtypes, given = self._dtypes(config, absent), {}
        if config.network is not None and not is_file(config.network):
            dtype = dtypes[self.network_name]
            given[self.network_name] = load_network(config.network, self.network_class, self.network_name, dtype)
        pipeline = load_pipeline(config, self.pipelines, dtypes, **absent, **given)
        if config.network is not None and is_file(config.network):
            load_weights(getattr(pipeline, self.network_name), config.network)
        return pipeline

    def left_out(self, config: Any) -> tuple[str, ...]:
        """Components that this config asks not to load."""
        return ()

    def assemble(self, config: Any, pipeline: Any) -> None:
        """Sets schedule, kind, grids, codec and image_size from the pipeline."""
        raise NotImplementedError

    def encoder(self, config: Any, pipeline: Any) -> CachedTextEncoder:
        """The family's text encoders as one."""
        raise NotImplementedError

    def components(self) -> dict[str, nn.Module]:
        return self._modules

    def to_pipeline(self) -> Any:
        """The stock pipeline around these modules; one of another dtype than the network's is a cast copy.

        A stock pipeline knows one dtype only, and it must not change the precision that training goes on in.
        """
        dtype = self.network_dtype
        modules = {
            name: module if dtype_of(module) == dtype else copy.deepcopy(module).to(dtype)
            for name, module in self.components().items()
        }
        parts = self._pipeline.components
        flags = {k: v for k, v in self._pipeline.config.items() if k not in parts and not k.startswith("_")}
        return type(self._pipeline)(**{**parts, **modules, **flags, **self.constructor})  # flags: is_distilled, ...

    def to(self, device: torch.device | str, *, but: nn.Module | None = None) -> "PipelineModel":
        """Move every module except `but`, off-loaded text encoders only in name; dtypes stay."""
        offloaded = hasattr(self, "text") and self.text.offloaded
        for name, module in self.components().items():
            if module is not but:
                module.to("cpu" if offloaded and name in self.text_names else device)
        if offloaded:
            self.text.target = torch.device(device)
        return self

    def compile(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compiles the blocks that the network repeats, once for all of them, where diffusers names them."""
        if self.network._repeated_blocks:
            self.network.compile_repeated_blocks(backend=backend)  # type: ignore[operator]  # of diffusers' ModelMixin
        else:
            super().compile(backend)

    @classmethod
    def asked(cls, config: Any, guidance_scale: float) -> dict[str, Any]:
        """What the stock pipeline is called with for this guidance, and for settings of text that are not its own."""
        said: dict[str, Any] = {"guidance_scale": guidance_scale}
        for name in ("t5_tokens", "text_tokens"):
            field = type(config).model_fields.get(name)
            if field is not None and (tokens := getattr(config, name)) not in (None, field.default):
                said["max_sequence_length"] = tokens
        return said

    def load_adapter(self, pipeline: Any, path: Path, strength: float = 1.0) -> None:
        """Puts the adapter in the folder `path` on a stock pipeline of this family; strength 0 is the base."""
        part = getattr(pipeline, self.network_name)  # the pipeline's own loader speaks of encoders without a LoRA
        part.load_lora_adapter(str(path), prefix=self.network_name, adapter_name="align", weight_name=ADAPTER_FILE)
        pipeline.set_adapters("align", strength)
        if strength == 0:
            pipeline.disable_lora()  # DoRA's trained norms would stay

    def _dtypes(self, config: Any, absent: dict[str, None]) -> dict[str, torch.dtype]:
        """Pipeline component -> dtype."""
        chosen = config.dtype.resolve()
        dtypes = {self.network_name: chosen["network"], "vae": chosen["vae"]}
        return dtypes | {name: chosen["text"] for name in self.text_names if name not in absent}
