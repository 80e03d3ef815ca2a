"""The one reader of adapters: where a run, a folder, a file or a Hub id has one, and its tensors at alpha = rank.

A tensor that is not understood changes the images it was trained for, so it is named and the file refused; nothing is
left out without a word. Names are those of diffusers (unet.X.lora_A.weight), its two older spellings, and PEFT's own.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from align.errors import UserError
from align.files import weights
from align.files.near import near
from align.files.output import write as write_file
from align.files.texts import Unreadable, json_value, read_text
from align.policy.adapter_state import read_state
from align.policy.adapter_tensors import ALPHA, DOWN, MAGNITUDE, UP, AdapterFile, assembled

FILE_NAME = "pytorch_lora_weights.safetensors"  # what diffusers' load_lora_weights looks for in a folder
METADATA_KEY = "lora_adapter_metadata"  # diffusers.loaders.lora_base.LORA_ADAPTER_METADATA_KEY
SAMPLING_KEY = "diffalign_sampling"  # of a few-step student: the sampling block that it was trained to be drawn by
RECIPE, FOLDER = "recipe.yaml", "adapter"  # in a run's folder, and in that of a pulled adapter
STEPS = ("adapters", "checkpoints")  # in a run's folder, with step-000050 in them: exported on the way, and kept
STATE, MANIFEST = "trainable.safetensors", "manifest.json"  # in a checkpoint's
NETWORKS = ("unet", "transformer")
TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOPS = {"unet": ("down_blocks.", "mid_block.", "up_blocks."), "transformer": ("transformer_blocks.",)}
TOPS["transformer"] += ("single_transformer_blocks.", "layers.", "blocks.")
SPELLINGS = (
    (r"\.lora_(A|B)\.(?:default|default_0)\.weight$", r".lora_\1.weight"),  # as PEFT has them in memory
    (r"\.lora_magnitude_vector(?:\.default)?(?:\.weight)?$", MAGNITUDE),
    (r"\.processor\.", "."),
    (r"\.to_out_lora\.down\.weight$", ".to_out.0" + DOWN),
    (r"\.to_out_lora\.up\.weight$", ".to_out.0" + UP),
    (r"\.(to_[qkv]|add_[qkv]_proj|to_add_out)_lora\.down\.weight$", r".\1" + DOWN),
    (r"\.(to_[qkv]|add_[qkv]_proj|to_add_out)_lora\.up\.weight$", r".\1" + UP),
    (r"\.lora\.down\.weight$", DOWN),
    (r"\.lora\.up\.weight$", UP),
    (r"\.lora_linear_layer\.down\.weight$", DOWN),
    (r"\.lora_linear_layer\.up\.weight$", UP),
)
"""Older and other spellings -> diffusers' names (diffusers.utils.state_dict_utils.UNET_TO_DIFFUSERS)."""
OTHER_KINDS = {"lokr_": "a LoKr", "hada_": "a LoHa", "lora_unet_": "kohya's names", "lora_te": "kohya's names"}
OTHER_KINDS |= {"diffusion_model.": "ComfyUI's names", "oft_": "an OFT", "ia3": "an IA3", "dora_scale": "kohya's DoRA"}


def locate(source: Path) -> tuple[Path, Path | None]:
    """(the adapter's file, the recipe beside it if there is one) of a run, an adapter's folder, a checkpoint of a run,
    or the file itself."""
    source = source.expanduser()
    if (source / MANIFEST).is_file() and (source / STATE).is_file():
        recipe = source.absolute().parent.parent / RECIPE
        return source / STATE, recipe if recipe.is_file() else None
    tried = [source] if source.is_file() else [source / FOLDER / FILE_NAME, source / FILE_NAME]
    for path in tried:
        if path.is_file():
            beside = [folder / RECIPE for folder in (path.parent, path.parent.parent)]
            if path.parent.parent.name == STEPS[0]:
                beside.append(path.parent.parent.parent / RECIPE)
            return path, next((recipe for recipe in beside if recipe.is_file()), None)
    why = f"neither it nor its folder {FOLDER} holds {FILE_NAME}"
    if not source.is_dir():
        why = "it is no folder" if source.exists() else "there is no such folder"
    elif (steps := sorted((source / "checkpoints").glob("step-*"))) and (steps[-1] / STATE).is_file():
        raise UserError(
            f"{source}: there is no adapter: the run has not ended. Finish it with align train, or name its newest "
            f"checkpoint, {steps[-1]}."
        )
    raise UserError(
        f"{source}: there is no adapter: {why}.{near(source)} Give the folder of a finished run, or of an adapter."
    )


def at_step(run: Path, step: int) -> Path:
    """The folder of the adapter after an update of a run: exported there (train.export_every), or in a checkpoint."""
    run, name = run.expanduser(), f"step-{step:06d}"
    if not run.is_dir():
        raise UserError(f"{run}: there is no such folder.{near(run)} Name the run whose update {step} you mean.")
    for folder in STEPS:
        if (run / folder / name).is_dir():
            return run / folder / name
    there = sorted({int(path.name[5:]) for folder in STEPS for path in (run / folder).glob("step-*") if _is_step(path)})
    listed = f"It has those of {', '.join(map(str, there))}." if there else "It has none of any."
    raise UserError(
        f"{run}: there is no adapter of update {step}: neither {STEPS[0]}/{name} nor {STEPS[1]}/{name}. {listed} "
        "train.export_every keeps one each so many updates."
    )


def _is_step(path: Path) -> bool:
    return path.is_dir() and path.name[5:].isdigit()


def is_hub_id(source: str | Path) -> bool:
    """Whether it has the form owner/name; a dot may be in it (me/style-v1.5), the end of a weights' file may not."""
    text = str(source)
    plain = text.count("/") == 1 and not text.startswith((".", "~", "/")) and not re.search(r"[\s\\]", text)
    return plain and not text.endswith((".safetensors", ".bin", ".pt", ".ckpt"))


def find(source: str | Path) -> Path:
    """The adapter's file that a folder, a file or a Hub id means."""
    path = Path(source).expanduser()
    if path.exists():
        return locate(path)[0]
    if not is_hub_id(source):
        reason = "and it is no Hub id (owner/name)"
    elif path.parent.is_dir():
        reason = f"in the folder {path.parent}"
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(str(source), FILE_NAME))
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            reason = f"and the Hub does not give it ({type(error).__name__})"
    raise UserError(f"{source}: there is no file {path} {reason}. Give the folder that holds {FILE_NAME}.")


def read(path: Path, component: str | None = None) -> AdapterFile:
    """The adapter in a file, at alpha = rank whatever alpha the file has; `component` is the network that it must be
    for. A UserError says what about the file is not understood."""
    if path.name == STATE and (path.parent / MANIFEST).is_file():
        return read_state(path, component)
    tensors, said = _load(path)
    named = {name: _place(name) for name in tensors}
    _refuse(path, named, tensors, component)
    found = next(place[0] for place in named.values() if place is not None)
    parts: dict[tuple[str, str], Tensor] = {}
    for name, place in named.items():
        assert place is not None
        if place[1:] in parts:
            raise UserError(f"{path}: {name} is there in two spellings. Give a file with one of them.")
        parts[place[1:]] = tensors[name]
    for module, end in list(parts):  # an older spelling of DoRA's
        if end == MAGNITUDE and (module, DOWN) not in parts and (f"{module}.0", DOWN) in parts:
            parts[f"{module}.0", end] = parts.pop((module, end))
    settings = {key.removeprefix(f"{found}."): value for key, value in said.items() if key.startswith(f"{found}.")}
    return assembled(path, found, parts, settings)


def drawn_by(path: Path) -> dict[str, Any] | None:
    """The sampling block that an adapter's file says it is drawn by; None: it says nothing. A UserError where what it
    says is none."""
    if path.name == STATE or path.suffix != ".safetensors":  # a checkpoint's recipe is beside it
        return None
    text = weights.metadata(path).get(SAMPLING_KEY)
    try:
        said = None if text is None else json.loads(text)
        assert said is None or isinstance(said, dict)
    except (ValueError, AssertionError):
        raise UserError(f"{path}: its {SAMPLING_KEY} is no JSON object. Export it again.") from None
    return said


def _place(name: str) -> tuple[str, str, str] | None:
    """A tensor's name -> (component, module, DOWN | UP | MAGNITUDE | ALPHA)."""
    name = name.removeprefix("base_model.model.")
    component, _, rest = name.partition(".")
    if component not in (*NETWORKS, *TEXT):
        known = [part for part, tops in TOPS.items() if name.startswith(tops)]
        if not known:
            return None
        component, rest = known[0], name
    rest = rest.removeprefix("base_model.model.")
    for pattern, plain in SPELLINGS:
        rest = re.sub(pattern, plain, f".{rest}").removeprefix(".")
    for end in (DOWN, UP, MAGNITUDE, ALPHA):
        if rest.endswith(end):
            return component, rest.removesuffix(end), end
    return None


def _refuse(path: Path, named: Mapping[str, Any], tensors: Mapping[str, Tensor], component: str | None) -> None:
    unknown = [name for name, place in named.items() if place is None]
    if unknown or not named:
        first = min(unknown, default="none")
        kind = next((kind for mark, kind in OTHER_KINDS.items() if mark in first), "")
        raise UserError(
            f"{path}: {len(unknown)} of its {len(named)} tensors are not those of one network's LoRA in diffusers' "
            f"format, first {first}{f' ({kind})' if kind else ''}. Convert it with diffusers' load_lora_weights and "
            "save_lora_weights."
        )
    components = sorted({place[0] for place in named.values()})
    if text := [name for name in components if name in TEXT]:
        first = next(name for name, place in named.items() if place[0] in TEXT)
        raise UserError(
            f"{path}: it also changes the {' and the '.join(text)} ({first}), which is not applied here, and without "
            "that part it is another adapter. Train and save it for the network alone."
        )
    if len(components) > 1:
        raise UserError(f"{path}: it holds adapters of {' and '.join(components)}. Give a file of one network.")
    if component is not None and components != [component]:
        raise UserError(
            f"{path}: it is an adapter of a {components[0]}, and this model's network is a {component}: it was trained "
            "on a model of another kind. Give one trained on this one."
        )


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """({name: tensor}, what the metadata say of PEFT's settings); one line for a file that is none."""
    tensors, metadata = weights.read(path)
    try:
        said = json.loads(metadata.get(METADATA_KEY, "{}"))
        assert isinstance(said, dict)
    except (ValueError, AssertionError):
        raise UserError(f"{path}: its {METADATA_KEY} is no JSON object. Make it again.") from None
    settings = path.parent / "adapter_config.json"  # PEFT's own folder says it beside the file
    if not said and settings.is_file() and any(name.startswith("base_model.model.") for name in tensors):
        try:
            config = json_value(read_text(settings), str(settings))
            assert isinstance(config, dict)
        except (Unreadable, AssertionError) as error:
            raise UserError(f"{settings}: is no JSON object that can be read ({error}). Make it again.") from None
        said = {f"{component}.{key}": value for component in NETWORKS for key, value in config.items()}
    elif not said and any(name.startswith("base_model.model.") for name in tensors):
        raise UserError(f"{path}: PEFT's file without the adapter_config.json that says its alpha. Put it beside.")
    return tensors, said


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Writes tensors as a .safetensors file that appears whole or not at all; equal tensors are equal files."""
    data = serialise({name: torch.clone(t).contiguous() for name, t in tensors.items()}, {"format": "pt", **metadata})
    return write_file(path, ordered(data))


def ordered(data: bytes) -> bytes:
    """The same safetensors file with its header's keys in order: safetensors writes the metadata in a random one, and
    equal adapters should be equal files."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
