"""The bundle that a model family is: network, codec, text, grids, schedule. Nothing else knows the family."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from align.errors import UserError
from align.models._layouts import Layout
from align.registry import ComponentConfig
from samplers import Grid, Prediction, Schedule

Dtype = Literal["auto", "fp32", "bf16", "fp16"]


class Dtypes(ComponentConfig):
    """The precision of each frozen component; adapters are fp32 whatever is chosen here."""

    network: Dtype = "auto"
    """auto is bf16 on a GPU (torch emulates it where the hardware has none: slow; choose fp16 there), fp32 on a CPU."""
    text: Dtype = "auto"
    """auto as for the network."""
    vae: Dtype = "auto"
    """auto is fp32: bf16 has 8 bits of mantissa, as few as the pixels it should resolve."""

    def resolve(self) -> dict[str, torch.dtype]:
        """{network, text, vae} -> torch dtypes on this machine."""
        named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        fast = torch.float32
        if torch.cuda.is_available():
            fast = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return {
            "network": named.get(self.network, fast),
            "text": named.get(self.text, fast),
            "vae": named.get(self.vae, torch.float32),
        }


@dataclass(frozen=True)
class Posterior:
    """q(x0 | pixels) in the latents' own scale: a diagonal Gaussian, mean and logvar (B, C, h, w)."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std noise, (B, C, h, w); `noise` is standard normal."""
        return self.mean + (0.5 * self.logvar).exp() * noise


class Codec(Protocol):
    factor: int  # pixels per latent, along each side
    channels: int  # of a latent

    def encode(self, pixels: Tensor) -> Posterior: ...  # (B, 3, H, W) in [0, 1]
    def decode(self, x0: Tensor) -> Tensor: ...  # (B, C, h, w) -> (B, 3, H, W) in [0, 1], differentiable


class TextEncoder(Protocol):
    # -> Cond of len(prompts) rows. The empty prompt is the family's unconditional row, whatever guidance takes there.
    def encode(self, prompts: Sequence[str], grad: bool = False) -> Any: ...
    def negative(self, prompt: str) -> Any: ...  # -> Cond of one row: a prompt that is guided away from
    def fingerprint(self) -> str: ...  # of the weights: part of any cache key


class Grids(Protocol):
    def __call__(
        self, num_steps: int, latent_shape: Sequence[int], step_rule: str, spacing: str | None = None
    ) -> Grid: ...


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of the first parameter that is no adapter's; of a quantised layer there is only the bias."""
    return next(p.dtype for name, p in module.named_parameters() if ".lora_" not in name)


def device_of(network: nn.Module) -> torch.device:
    """Where a network is called: where its adapters are. Weights that are cut may rest elsewhere (sharding.py)."""
    own: torch.device | None = None
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            return parameter.device
        own = own or parameter.device
    return own or torch.device("cpu")


class DiffusionModel:
    """One model family's bundle. A builder file subclasses it, fills the attributes in and writes `predict`.

    `source` is the checkpoint that the bundle was loaded from (Hub id, folder or file), as the user gave it.
    """

    network: nn.Module
    codec: Codec
    text: TextEncoder
    grids: Grids
    schedule: Schedule
    kind: Prediction
    lora_targets: tuple[str, ...]
    layouts: ClassVar[Mapping[str, Layout]] = {}  # how other programs name an adapter's layers: {"kohya": ..., }
    image_size: tuple[int, int]  # height, width that the network was trained at
    patch: int = 1  # latents along each side that the network takes as one token
    source: str
    small_decoders: ClassVar[tuple[str, ...]] = ()
    """Hub ids of small decoders of these latents (align/models/_small_decoder.py)."""

    @classmethod
    def layout(cls, format: str, config: Any) -> Layout:
        """That of `layouts`, for the network of a checkpoint that `config` names."""
        return cls.layouts[format]

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """The network's raw output, (B, C, h, w) in x_t's dtype. `network` may be a wrapped self.network.

        x_t: (B, C, h, w); t: () or (B,), in [0, 1]; cond: B rows of what `text.encode` returned.
        """
        raise NotImplementedError

    rescale: Callable[[Tensor, Tensor], Tensor] | None = None
    """What the family's pipeline does to a guided output: (guided, conditional) -> guided, each (B, C, h, w)."""

    def components(self) -> dict[str, nn.Module]:
        """Every module of the bundle, by the name that its pipeline has for it."""
        raise NotImplementedError

    def to_pipeline(self) -> Any:
        """A stock diffusers pipeline around these very modules, adapters included."""
        raise NotImplementedError

    @property
    def network_dtype(self) -> torch.dtype:
        """What the network computes in; adapters on it may be wider."""
        return dtype_of(self.network)

    def denoiser(self, network: nn.Module | None = None) -> "ModelDenoiser":
        """The model as the samplers see it; `network` defaults to the bundle's own."""
        return ModelDenoiser(self, self.network if network is None else network)

    def latent_shape(self, image_size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(C, h, w) of one sample at (height, width) pixels, by default the size the network was trained at."""
        height, width = image_size or self.image_size
        multiple = self.codec.factor * self.patch
        if height % multiple or width % multiple:
            raise UserError(
                f"sampling.image_size={[height, width]}: both must be multiples of {multiple}, the number of pixels "
                f"that a {'latent' if self.patch == 1 else 'token of the network'} stands for."
            )
        return self.codec.channels, height // self.codec.factor, width // self.codec.factor

    def to(self, device: torch.device | str, *, but: nn.Module | None = None) -> "DiffusionModel":
        """Move every module except `but`; dtypes stay."""
        for module in self.components().values():
            if module is not but:
                module.to(device)
        return self

    def compile(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compiles the network in place, adapters included, by one of torch.compile's backends."""
        self.network.compile(backend=backend)

    def freeze(self) -> None:
        """Evaluation mode and no gradients for every parameter: what trains is added on top."""
        for module in self.components().values():
            module.eval().requires_grad_(False)


@dataclass(frozen=True)
class ModelDenoiser:
    """A `samplers.Denoiser`: (x_t, t, cond) -> out."""

    model: DiffusionModel
    network: nn.Module

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    @property
    def kind(self) -> Prediction:
        return self.model.kind

    @property
    def rescale(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        return self.model.rescale

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.model.predict(self.network, x_t, t, cond)
