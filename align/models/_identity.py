"""What a model's outputs depend on, as short digests: the name of anything that is kept on disk and read back.

A digest covers the weights (not an adapter's), the configs, the settings of the family, and the source of the code that
turns them into numbers, with the versions of the libraries below it. So what is read back under a name is what would
be made anew. Only where a thing lies, and what saves memory without changing a number, are left out.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FREE = ("checkpoint", "config_dir", "revision", "variant", "network", "base_adapter")  # what they name is hashed itself
FREE += ("offload_text", "text_on_cpu", "checkpoint_blocks", "decode_chunk")
LIBRARIES = ("diffusers", "transformers")


def digest(value: Any) -> str:
    """A key for JSON-able settings."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=12).hexdigest()


def weights(module: nn.Module) -> str:
    """Of all weights but an adapter's; the same whichever layers carry one."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in ((n, t) for n, t in module.state_dict().items() if ".lora_" not in n):
        found.update(f"{name.replace('.base_layer', '')}{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def module(network: nn.Module) -> list[Any]:
    """A network: its class, config and weights."""
    return [type(network).__qualname__, _config(network), weights(network)]


def codec(found: Any) -> str:
    """Of what turns pixels into latents."""
    return digest([_described(found), module(found.vae), sources(type(found)), _versions()])


def text(encoder: Any) -> str:
    """Of what turns prompts into embeddings: encoders, tokenizers, lengths, and what becomes of the empty prompt."""
    modules = [module(each) for each in encoder.modules]
    return digest([_described(encoder), modules, sources(type(encoder)), _versions()])


def network(model: Any, autocast: Any) -> str:
    """Of what the network says at a state: also its table of times, its settings and `autocast`, a context."""
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
    table = [values.tolist() for values in model.schedule(grid)]
    device = next(model.network.parameters()).device.type
    with autocast:
        on = torch.is_autocast_enabled(device)
        precision = str(torch.get_autocast_dtype(device)) if on else "no"
    settings = getattr(model, "settings", None)
    said = settings.model_dump(mode="json", exclude=set(FREE)) if settings is not None else None
    of_family = [said, str(model.kind), _described(model), sources(type(model))]
    return digest([module(model.network), table, precision, of_family, _versions()])


@cache
def sources(*classes: type) -> str:
    """Of the files of our own classes, their bases among us, and what tokenizes and reads encoders."""
    files = {inspect.getfile(base) for kind in classes for base in kind.__mro__ if base.__module__.startswith("align.")}
    files |= {str(Path(__file__).with_name(name)) for name in ("_tokens.py", "_encoders.py", "_flow.py", "_grids.py")}
    return digest([hashlib.blake2b(Path(file).read_bytes()).hexdigest() for file in sorted(files)])


def files(*modules: Any) -> str:
    """Of the source of some modules."""
    return digest([hashlib.blake2b(Path(inspect.getfile(each)).read_bytes()).hexdigest() for each in modules])


def _versions() -> list[str]:
    found = []
    for library in LIBRARIES:
        try:
            found.append(".".join(version(library).split(".")[:2]))
        except PackageNotFoundError:
            found.append("")
    return found


def _config(component: Any) -> Any:
    """A diffusers or transformers config without where it came from."""
    config = getattr(component, "config", None)
    if config is None:
        return None
    told: Mapping[str, Any] = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    free = ("transformers_version", "dtype", "torch_dtype")  # the weights have their own
    return {k: _plain(v) for k, v in told.items() if not str(k).startswith("_") and k not in free}


def _described(thing: Any) -> Any:
    """The settings that an object of ours holds, tokenizers and those of its parts among them; no weights."""
    hidden = ("source", "modules", "target", "offloaded", "chunk", "settings")
    held = {k: v for k, v in sorted(vars(thing).items()) if k not in hidden and not k.startswith("_")}
    return {k: _plain(v) for k, v in held.items() if not inspect.isroutine(v)}  # code is in `sources`


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.detach().double().flatten().tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, nn.Module):
        return type(value).__qualname__
    if hasattr(value, "get_vocab"):
        return _tokenizer(value)
    if type(value).__module__.startswith("align.") and hasattr(value, "__dict__"):
        return [type(value).__qualname__, _described(value)]
    return f"{type(value).__module__}.{type(value).__qualname__}" if not callable(value) else _name(value)


def _name(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _tokenizer(tokenizer: Any) -> list[Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    table = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return [
        type(tokenizer).__qualname__,
        hashlib.blake2b(_without_state(table).encode()).hexdigest(),
        {k: str(v) for k, v in sorted(tokenizer.special_tokens_map.items())},
        str(tokenizer.model_max_length),
        tokenizer.padding_side,
        getattr(tokenizer, "truncation_side", ""),
        str(getattr(tokenizer, "chat_template", "")),
    ]


def _without_state(table: str) -> str:
    """A tokenizer keeps the padding and truncation of its last call, which is no setting."""
    told = json.loads(table)
    return json.dumps({k: v for k, v in told.items() if k not in ("padding", "truncation")}, sort_keys=True)
