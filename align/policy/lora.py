"""LoRA through PEFT: inject, switch off, scale, and the diffusers file `pytorch_lora_weights.safetensors`.

    W = W0 + s B A,   A (r, in), B (out, r),   s = alpha / r, or alpha / sqrt(r) for rsLoRA

A ~ kaiming uniform and B = 0 at the start, so that a fresh adapter is the identity (Hu et al. 2021, arXiv 2106.09685;
rsLoRA: Kalajdzievski 2023, arXiv 2312.03732; DoRA: Liu et al. 2024, arXiv 2402.09353).

A loader that finds no alpha in a file assumes alpha = r. So the file holds s B in place of B and says alpha = r: every
loader, with or without knowledge of the metadata, arrives at the same W.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from align.errors import UserError
from align.policy import adapter_file
from align.policy.adapter_file import FILE_NAME, METADATA_KEY, is_hub_id
from align.registry import ComponentConfig

NAME = "default"  # the adapter's name inside PEFT's layers


class AdapterConfig(ComponentConfig):
    """What is trained: a low-rank adapter on the linear layers of the network."""

    rank: int = Field(default=8, ge=1)
    """r: the adapter adds r (in + out) numbers for each layer that it touches."""
    alpha: float | None = Field(default=None, gt=0)
    """The scale is alpha / rank; not given, alpha = rank and the scale is 1."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input. Leave at 0 where noise would drown the signal (preference losses)."""
    targets: list[str] | str | None = None
    """Names of the layers to adapt (endings of module names), or a regular expression; default: the model family's."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank): keeps the update's size when the rank grows."""
    dora: bool = False
    """Also train the norm of each output row of the weight."""
    init: str | None = None
    """Start from this adapter: a folder, a .safetensors file, or a Hub id; its rank must equal `rank`."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if self.init is None or (is_hub_id(self.init) and not Path(self.init).expanduser().exists()):
            return
        try:
            adapter_file.read(adapter_file.find(self.init))
        except UserError as error:
            yield ".init", str(error)

    @model_validator(mode="before")
    @classmethod
    def _not_full(cls, value: Any) -> Any:
        if value is None or value in ("full", False):
            raise ValueError(
                "full fine-tuning is not offered: the reference would need a second copy of the network, and a "
                "reward's gradient on all weights forgets the base model within a few updates. Set adapter.rank "
                "(64 or more comes close to it)"
            )
        return value


def inject(network: nn.Module, config: AdapterConfig, targets: list[str] | str, *, seed: int = 0) -> list[Any]:
    """Freezes `network`, puts an adapter on its `targets` in place and returns PEFT's layers, in module order.

    The adapter's parameters are float32 masters where the network is bf16 or fp16, and the only ones with gradients.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.rank if config.alpha is None else config.alpha,  # type: ignore[arg-type]  # a float works
        lora_dropout=config.dropout,
        target_modules=config.targets or targets,
        use_rslora=config.rslora,
        use_dora=config.dora,
    )
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # PEFT draws A on the CPU
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(settings, network, NAME)
        except ValueError as error:
            linear = sorted({n.rsplit(".", 1)[-1] for n, m in network.named_modules() if isinstance(m, nn.Linear)})
            raise UserError(
                f"adapter.targets={settings.target_modules!r}: no layer of {type(network).__name__} can be adapted "
                f"({error}). Its linear layers end in: {', '.join(linear)}."
            ) from None
    for parameter in parameters(network):
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    layers = [module for module in network.modules() if isinstance(module, LoraLayer)]
    for layer in layers if config.dora else []:
        _measure_norms(layer)
    return layers


@torch.no_grad()
def _measure_norms(layer: Any) -> None:
    """DoRA's norms of the base weight in float32, as a forward pass takes them: PEFT begins with those in the weight's
    dtype, and in bf16 a fresh adapter would not be the identity."""
    from peft.utils.integrations import dequantize_module_weight

    norms = dequantize_module_weight(layer.get_base_layer()).float().flatten(1).norm(dim=1)
    magnitude = layer.lora_magnitude_vector[NAME].weight
    magnitude.data = norms.view_as(magnitude)


def parameters(network: nn.Module) -> list[nn.Parameter]:
    """The adapter's parameters in module order (A, B and, for DoRA, the magnitude of each layer)."""
    return [p for name, p in network.named_parameters() if ".lora_" in name]


@contextmanager
def disabled(layers: list[Any]) -> Iterator[None]:
    """Inside, the network is the base network bit for bit.

    PEFT's switch also clears and sets `requires_grad`: it is put back as it was, since a graph may be waiting for its
    backward pass.
    """
    required = [(p, p.requires_grad) for layer in layers for n, p in layer.named_parameters() if "lora_" in n]
    before = [layer.disable_adapters for layer in layers]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer, was_disabled in zip(layers, before, strict=True):
            layer.enable_adapters(not was_disabled)
        for parameter, value in required:
            parameter.requires_grad_(value)


@contextmanager
def scaled(layers: list[Any], strength: float) -> Iterator[None]:
    """Inside, W = W0 + strength s B A; strength 0 is the base bit for bit (DoRA's trained norm included)."""
    if strength == 0:
        with disabled(layers):
            yield
        return
    for layer in layers:
        layer.set_scale(NAME, strength)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_scale(NAME, 1.0)


def merge(network: nn.Module, layers: list[Any]) -> None:
    """Adds the adapter to the weights for good, at the strength that `scaled` has set, and takes PEFT's layers out."""
    for layer in layers:
        layer.merge()
    for name, module in list(network.named_modules()):
        if any(module is layer for layer in layers):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, module.get_base_layer())  # type: ignore[operator]  # PEFT's
    del network.peft_config


@torch.no_grad()
def delta_norm(layers: list[Any]) -> Tensor:
    """Frobenius norm of all s B A together, () float: |BA|^2 = <B^T B, A A^T>, so no (out, in) matrix is formed."""
    total = torch.zeros((), device=layers[0].lora_A[NAME].weight.device)
    for layer in layers:
        a, b = layer.lora_A[NAME].weight.flatten(1), layer.lora_B[NAME].weight.flatten(1)
        total = total + layer.scaling[NAME] ** 2 * ((b.T @ b) * (a @ a.T)).sum()
    return total.clamp(min=0).sqrt()  # rounding may leave -1e-12


def save(network: nn.Module, path: Path, *, component: str = "unet") -> Path:
    """Writes the adapter into the folder `path` as diffusers' file; `component` is its pipeline's name for `network`.

    The file appears whole or not at all.
    """
    from peft import get_peft_model_state_dict

    settings = _settings(network)
    scale = _scale(settings.lora_alpha, settings.r, settings.use_rslora)
    tensors = {}
    for name, value in get_peft_model_state_dict(network, adapter_name=NAME).items():  # type: ignore[arg-type]
        value = value.detach().cpu() * (scale if ".lora_B." in name else 1.0)
        tensors[f"{component}.{name}"] = value.contiguous()
    targets = settings.target_modules
    said = {
        "r": settings.r,
        "lora_alpha": settings.r,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "use_dora": settings.use_dora,
        "use_rslora": False,
    }
    metadata = {METADATA_KEY: json.dumps({f"{component}.{k}": v for k, v in said.items()})}
    return adapter_file.write(path / FILE_NAME, tensors, metadata)


def load(network: nn.Module, source: str | Path, *, component: str = "unet") -> None:
    """Copies the adapter in `source` into the one already injected; any alpha of the file is respected."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    settings = _settings(network)
    ours = _scale(settings.lora_alpha, settings.r, settings.use_rslora)
    try:
        tensors = adapter_file.read(adapter_file.find(source), component).tensors()
    except UserError as error:
        raise UserError(f"adapter.init={error}") from None
    wanted = {n: tuple(v.shape) for n, v in get_peft_model_state_dict(network, adapter_name=NAME).items()}  # type: ignore[arg-type]
    found = {n: tuple(v.shape) for n, v in tensors.items()}
    if found != wanted:
        name = sorted(set(found.items()) ^ set(wanted.items()))[0][0]
        raise UserError(
            f"adapter.init={source}: it does not fit the adapter of this recipe, first at {name} (file: "
            f"{found.get(name, 'absent')}, recipe: {wanted.get(name, 'absent')}). Set adapter.rank, targets and dora "
            "as they were when it was trained."
        )
    tensors = {name: value / ours if name.endswith(adapter_file.UP) else value for name, value in tensors.items()}
    set_peft_model_state_dict(network, tensors, adapter_name=NAME)  # type: ignore[arg-type]


def _settings(network: nn.Module) -> Any:
    return network.peft_config[NAME]  # type: ignore[index]  # PEFT puts it there


def _scale(alpha: float, rank: int, rslora: bool) -> float:
    return alpha / (rank**0.5 if rslora else rank)
