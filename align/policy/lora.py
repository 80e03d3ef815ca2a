"""LoRA through PEFT: inject, merge, and the diffusers file `pytorch_lora_weights.safetensors`.

    W = W0 + s B A,   A (r, in), B (out, r),   s = alpha / r, or alpha / sqrt(r) for rsLoRA

A ~ kaiming uniform and B = 0 at the start, so that a fresh adapter is the identity (Hu et al. 2021, arXiv 2106.09685;
rsLoRA: Kalajdzievski 2023, arXiv 2312.03732; DoRA: Liu et al. 2024, arXiv 2402.09353).

A loader that finds no alpha in a file assumes alpha = r. So the file holds s B in place of B and says alpha = r: every
loader, with or without knowledge of the metadata, arrives at the same W.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from align.errors import UserError
from align.policy import adapter_file
from align.policy._targets import check_targets, refused
from align.policy.adapter_file import FILE_NAME, METADATA_KEY, is_hub_id
from align.registry import ComponentConfig

NAME = "default"  # inside PEFT's layers, of the adapter that a run trains; others lie beside it


class AdapterConfig(ComponentConfig):
    """What is trained: a low-rank adapter on the linear layers of the network."""

    rank: int = Field(default=8, ge=1)
    """r: the adapter adds r (in + out) numbers for each layer that it touches."""
    alpha: float | None = Field(default=None, gt=0)
    """The scale is alpha / rank; not given, alpha = rank and the scale is 1."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input. Leave at 0 where noise would drown the signal (preference losses)."""
    targets: Annotated[list[str], Field(min_length=1)] | Annotated[str, Field(min_length=1)] | None = None
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


def inject(
    network: nn.Module, config: AdapterConfig, targets: list[str] | str, *, seed: int = 0, name: str = NAME
) -> list[Any]:
    """Freezes `network`, puts an adapter on its `targets` in place and returns its PEFT layers, in module order.

    The adapter's parameters are float32 masters where the network is bf16 or fp16, and beside those of adapters that
    are there already the only ones with gradients. The first adapter of a network is on, a further one is off.
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
    check_targets(network, config.targets or [])
    others = [(p, p.requires_grad) for n, p in network.named_parameters() if ".lora_" in n]
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # PEFT draws A on the CPU
        torch.manual_seed(seed)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a further adapter is meant
                inject_adapter_in_model(settings, network, name)
        except ValueError as error:
            raise refused(network, f"{settings.target_modules!r}: no layer can be adapted ({error})") from None
    every = [module for module in network.modules() if isinstance(module, LoraLayer)]
    for layer in every:
        layer.set_adapter(NAME if others else name)
    for parameter, required in others:
        parameter.requires_grad_(required)
    for parameter in parameters(network, name):
        parameter.requires_grad_()
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    layers = [layer for layer in every if name in layer.scaling]
    for layer in layers if config.dora else []:
        _measure_norms(layer, name)
    return layers


@torch.no_grad()
def _measure_norms(layer: Any, name: str) -> None:
    """DoRA's norms of the base weight in float32, as a forward pass takes them: PEFT begins with those in the weight's
    dtype, and in bf16 a fresh adapter would not be the identity."""
    from peft.utils.integrations import dequantize_module_weight

    norms = dequantize_module_weight(layer.get_base_layer()).float().flatten(1).norm(dim=1)
    magnitude = layer.lora_magnitude_vector[name].weight
    magnitude.data = norms.view_as(magnitude)


def named(network: nn.Module, name: str = NAME) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of the adapter `name` in module order (A, B and, for DoRA, the magnitude of each layer)."""
    mine = re.compile(rf"\.lora_\w+\.{re.escape(name)}(\.|$)")
    return ((n, p) for n, p in network.named_parameters() if mine.search(n))


def parameters(network: nn.Module, name: str = NAME) -> list[nn.Parameter]:
    return [parameter for _, parameter in named(network, name)]


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
def delta_norm(layers: list[Any], name: str = NAME) -> Tensor:
    """Frobenius norm of all s B A together, () float: |BA|^2 = <B^T B, A A^T>, so no (out, in) matrix is formed."""
    total = torch.zeros((), device=layers[0].lora_A[name].weight.device)
    for layer in layers:
        a, b = layer.lora_A[name].weight.flatten(1), layer.lora_B[name].weight.flatten(1)
        total = total + layer.scaling[name] ** 2 * ((b.T @ b) * (a @ a.T)).sum()
    return total.clamp(min=0).sqrt()  # rounding may leave -1e-12


def save(
    network: nn.Module,
    path: Path,
    *,
    component: str = "unet",
    name: str = NAME,
    more: Mapping[str, str] | None = None,
) -> Path:
    """Writes the adapter into the folder `path` as diffusers' file; `component` is its pipeline's name for `network`,
    `more` what else its metadata say.

    The file appears whole or not at all.
    """
    from peft import get_peft_model_state_dict

    settings = _settings(network, name)
    scale = _scale(settings.lora_alpha, settings.r, settings.use_rslora)
    tensors = {}
    for key, value in get_peft_model_state_dict(network, adapter_name=name).items():  # type: ignore[arg-type]
        value = value.detach().cpu() * (scale if ".lora_B." in key else 1.0)
        tensors[f"{component}.{key}"] = value.contiguous()
    targets = settings.target_modules
    said = {
        "r": settings.r,
        "lora_alpha": settings.r,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "use_dora": settings.use_dora,
        "use_rslora": False,
    }
    metadata = {METADATA_KEY: json.dumps({f"{component}.{k}": v for k, v in said.items()})}
    return adapter_file.write(path / FILE_NAME, tensors, {**metadata, **(more or {})})


def load(network: nn.Module, source: str | Path, *, component: str = "unet", into: str = NAME) -> None:
    """Copies the adapter in `source` into the one already injected as `into`; any alpha of the file is respected."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    settings = _settings(network, into)
    ours = _scale(settings.lora_alpha, settings.r, settings.use_rslora)
    try:
        tensors = adapter_file.read(adapter_file.find(source), component).tensors()
    except UserError as error:
        raise UserError(f"adapter.init={error}") from None
    wanted = {n: tuple(v.shape) for n, v in get_peft_model_state_dict(network, adapter_name=into).items()}  # type: ignore[arg-type]
    found = {n: tuple(v.shape) for n, v in tensors.items()}
    if found != wanted:
        name = sorted(set(found.items()) ^ set(wanted.items()))[0][0]
        raise UserError(
            f"adapter.init={source}: it does not fit the adapter of this recipe, first at {name} (file: "
            f"{found.get(name, 'absent')}, recipe: {wanted.get(name, 'absent')}). Set adapter.rank, targets and dora "
            "as they were when it was trained."
        )
    tensors = {name: value / ours if name.endswith(adapter_file.UP) else value for name, value in tensors.items()}
    set_peft_model_state_dict(network, tensors, adapter_name=into)  # type: ignore[arg-type]


def _settings(network: nn.Module, name: str) -> Any:
    return network.peft_config[name]  # type: ignore[index]  # PEFT puts it there


def _scale(alpha: float, rank: int, rslora: bool) -> float:
    return alpha / (rank**0.5 if rslora else rank)
