"""A recipe's model on the meta device: from its checkpoint's JSON files, or from what is known of published ones.

The meta device has shapes and no data. A checkpoint that is listed (`align models`) is planned without the network: its
prompts are then encoded by a stand-in of the right shapes, and its text encoders are there to be weighed.
"""

import functools
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from align.errors import UserError
from align.models._base import Dtypes
from align.models._real_size import example_cond, find, real_size, text_encoders
from align.models._text import CLIPText
from align.registry import MODELS, build, resolve_embedded

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


def model_of(config: Any, dtypes: Dtypes) -> Any:
    """The bundle on the meta device, frozen; `dtypes` with nothing left to choose. Its text encodes without a cache."""
    changes = {"dtype": dtypes, "base_adapter": None, "network": None, "attention": "sdpa"}  # none changes a size
    config = config.model_copy(update={key: value for key, value in changes.items() if hasattr(config, key)})
    try:
        folder = _configs(config)
    except UserError:
        if (known := find(config.checkpoint)) is None:
            raise
        return _published(config, *known)
    model = build(MODELS, config, _pipeline(folder, dtypes))
    for module in model.components().values():
        module.to("meta")
        if hasattr(module, "set_attn_implementation"):  # sdpa's mask looks at the padding's values, and there are none
            module.set_attn_implementation("eager")
    model.text.encode = functools.partial(model.text.encode, grad=True)  # without hash and cache: there are no weights
    return model


def _published(config: Any, family: Any, published: Any) -> Any:
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if not isinstance(config, family.Config):  # found by name=auto
        own = {key: getattr(config, key) for key in type(config).model_fields if key != "name"}
        config = family.Config(**own)
    model = real_size(family, published, dtype=named[config.dtype.network], vae=named[config.dtype.vae], config=config)
    absent = model.left_out(config)
    encoders = text_encoders(published, dtype=named[config.dtype.text])
    model.components().update({name: module for name, module in encoders.items() if name not in absent})
    by_clip = [kind for kind, _ in published.text.values()] == ["CLIPTextModel"]
    told = _ToldByCLIP(published, *encoders.values()) if by_clip else _Told(published)
    model.text = told  # type: ignore[assignment]  # a stand-in, of shapes alone
    return model


class _Told:
    """Stands in for a text encoder: as many rows of the published shapes as there are prompts."""

    def __init__(self, published: Any):
        self.published, self.offloaded = published, False

    def encode(self, prompts: Sequence[str], grad: bool = False) -> Any:
        return example_cond(self.published, len(prompts))

    def negative(self, prompt: str) -> Any:
        return self.encode([prompt])

    def fingerprint(self) -> str:
        return "none"


class _ToldByCLIP(CLIPText):
    """The same where the one encoder is a CLIP, whose tokens can be what is trained: prompts then go through it."""

    def __init__(self, published: Any, encoder: Any):
        from transformers import CLIPTokenizer

        super().__init__(CLIPTokenizer({"<|startoftext|>": 0, "<|endoftext|>": 1}, [], model_max_length=77), encoder)
        self.published = published

    def encode(self, prompts: Sequence[str], grad: bool = False) -> Any:
        if not self.trained:
            return example_cond(self.published, len(prompts))
        return super().encode([""] * len(prompts), grad=True)

    def fingerprint(self) -> str:
        return "none"


def _pipeline(folder: Path, dtypes: Dtypes) -> Any:
    """The diffusers pipeline of a checkpoint with its networks on the meta device, from its JSON files."""
    import diffusers
    import transformers

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    components: dict[str, Any] = {}
    for name, entry in index.items():
        pair = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str | None)
        if name.startswith("_") or not pair:
            continue  # a setting: Krea 2 has a list of numbers among them
        library = {"diffusers": diffusers, "transformers": transformers}.get(str(entry[0]))
        kind = getattr(library, str(entry[1]), None)
        if kind is None or name in UNUSED:
            components[name] = None
        elif not issubclass(kind, nn.Module):
            components[name] = kind.from_pretrained(folder, subfolder=name)
        else:
            with torch.device("meta"):
                components[name] = _untrained(kind, folder / name)
    resolved = dtypes.resolve()
    for name, module in components.items():
        if isinstance(module, nn.Module):
            role = "network" if name in ("unet", "transformer") else "vae" if name == "vae" else "text"
            nn.Module.to(module, resolved[role])  # diffusers' own warns of modules that want float32
    kind = getattr(diffusers, index["_class_name"])
    names = [name for name in index if name in inspect.signature(kind).parameters]  # more is ignored, as by diffusers
    return kind(**{n: components.get(n, index[n]) for n in names})


def _untrained(kind: Any, folder: Path) -> nn.Module:
    if hasattr(kind, "load_config"):
        return kind.from_config(kind.load_config(folder))
    return kind(kind.config_class.from_pretrained(folder))


def _configs(config: Any) -> Path:
    """The folder of a checkpoint's configs; of one on the Hub only what is cached, where it is known without."""
    checkpoint = resolve_embedded(config.checkpoint)
    folder = Path(getattr(config, "config_dir", None) or checkpoint).expanduser()
    if (folder / "model_index.json").is_file():
        return folder
    if checkpoint.count("/") != 1 or folder.exists():
        raise UserError(f"model.checkpoint={checkpoint} has no model_index.json, from which its networks are built.")
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {"revision": config.revision, "allow_patterns": ["*.json", "*.txt"]}
    try:
        return Path(snapshot_download(checkpoint, local_files_only=find(checkpoint) is not None, **options))
    except Exception as error:  # the Hub's client and its transport raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the configs of {checkpoint} are neither cached nor to be had: {reason}") from None
