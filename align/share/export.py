"""`align export`: an adapter in the form that another program reads, or merged into the base model's weights.

kohya    one file as sd-scripts writes it (A1111, Forge, InvokeAI, diffusers)
comfyui  one file in the names that ComfyUI knows
peft     a folder for peft.PeftModel.from_pretrained(network, folder)
merged   a diffusers folder of the whole model: W = W0 + strength B A, in float32

Learnt tokens have one format, textual_inversion: the file that diffusers' load_textual_inversion and the embeddings'
folders of other programs read, named by its placeholder, as those call it.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.config import Recipe, load_recipe
from align.errors import UserError
from align.files.output import check_folder, whole_folder, write
from align.models._base import Dtypes
from align.models._load import without_bars
from align.policy import adapter_file, soft_prompt
from align.policy.adapter_file import DOWN, MAGNITUDE, UP, AdapterFile
from align.policy.mix import Mixer, whole_names
from align.registry import MODELS, build, model_family, resolve_embedded
from align.share.publish import unplaced

TOKENS = "textual_inversion"
SAID = {"kohya": {"ss_network_module": "networks.lora"}}
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")


def export(
    source: Path,
    format: str,
    output: Path | None = None,
    *,
    recipe: str | None = None,
    strength: float = 1.0,
    step: int | None = None,
) -> Path:
    """Writes the adapter at `source`, times `strength`, in a format and returns the path of the file or folder.

    The family of its model comes from `recipe`, by default the one beside it. `output` is a folder, by default
    exports/NAME-FORMAT. `step`: the adapter after that update of a run, in place of its result.
    """
    if format not in (known := (*FORMATS, TOKENS)):
        raise UserError(f"--format {format}: there is no such format. Choose one of {', '.join(known)}.")
    if strength == 0:
        raise UserError("--strength 0: that is the base model. Choose another.")
    called = source.expanduser().resolve().name
    if step is not None:
        source, called = adapter_file.at_step(source, step), f"{called}-step-{step}"
    if (tokens := soft_prompt.locate(source)) or format == TOKENS:
        folder = check_folder(output or Path("exports") / f"{called}-{format}", "--output", empty=True)
        return _tokens(tokens, source, format, folder, strength)
    path, beside = adapter_file.locate(source)
    if recipe is None and beside is None and format != "peft":
        raise UserError(
            f"{source}: there is no recipe.yaml beside this adapter to say which model it is for. Name one: "
            "--recipe draft/sd15_hpsv2."
        )
    named = recipe or beside
    loaded = load_recipe(named, on_disk=False) if named is not None else None
    name = path.stem if source.is_file() else called
    folder = check_folder(output or Path("exports") / f"{name}-{format}", "--output", empty=True)
    file = adapter_file.read(path)
    with whole_folder(folder, "--output") as place:
        written = FORMATS[format](file, loaded, place, name, strength)
    return folder / written.relative_to(place)


def _layout(format: str) -> Callable[..., Path]:
    """Writes the format that the model's family has a layout of that name for."""

    def write(file: AdapterFile, recipe: Recipe, folder: Path, name: str, strength: float) -> Path:
        family = model_family(recipe.model)
        layouts = family.layouts
        if format not in layouts:
            known = ", ".join([*layouts, "peft", "merged"])
            raise UserError(
                f"--format {format}: models of this kind ({recipe.model.name}) have no layout of that name. "  # type: ignore[attr-defined]
                f"Choose one of {known}."
            )
        _plain(file, format)
        try:
            layout = family.layout(format, resolve_embedded(recipe.model))
        except UserError as error:
            raise UserError(f"--format {format}: {error} Choose peft or merged.") from None
        try:
            tensors = layout(_scaled(file, strength))
        except KeyError as error:
            raise UserError(
                f"--format {format}: the layer {error.args[0]} has no name in it. Choose peft or merged."
            ) from None
        return adapter_file.write(folder / f"{name}.safetensors", tensors, SAID.get(format, {}))

    return write


def _peft(file: AdapterFile, recipe: Recipe | None, folder: Path, name: str, strength: float) -> Path:
    if strength != 1:
        _plain(file, "peft at a strength other than 1")
    tensors = {}
    for module, (a, b) in _scaled(file, strength).items():
        tensors[f"base_model.model.{module}{DOWN}"] = a
        tensors[f"base_model.model.{module}{UP}"] = b
    tensors |= {f"base_model.model.{module}{MAGNITUDE}": m for module, m in file.magnitudes.items()}
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": unplaced(str(getattr(recipe.model, "checkpoint", ""))) if recipe else None,
        "r": file.rank,
        "lora_alpha": file.rank,
        "rank_pattern": whole_names(file.ranks),
        "alpha_pattern": whole_names(file.ranks),
        "target_modules": sorted(file.layers),
        "use_dora": bool(file.magnitudes),
        "inference_mode": True,
    }
    weights, settings = PEFT_FILES
    adapter_file.write(folder / weights, tensors, {})
    write(folder / settings, json.dumps(config, indent=2) + "\n", "--output")
    return folder


def _merged(file: AdapterFile, recipe: Recipe, folder: Path, name: str, strength: float) -> Path:
    model = build(MODELS, in_float32(recipe.model))
    mixer = Mixer(model.network, file.component)
    mixer.add(str(file.path))
    mixer.set({str(file.path): strength})
    mixer.merge()
    with without_bars():
        model.to_pipeline().save_pretrained(folder)
    return folder


FORMATS: dict[str, Callable[..., Path]] = {
    "kohya": _layout("kohya"),
    "comfyui": _layout("comfyui"),
    "peft": _peft,
    "merged": _merged,
}


def _tokens(file: Path | None, source: Path, format: str, folder: Path, strength: float) -> Path:
    """The file of learnt tokens, under its placeholder's name."""
    if file is None:
        raise UserError(f"--format {TOKENS}: {source} holds no learnt tokens. Choose one of {', '.join(FORMATS)}.")
    if format != TOKENS:
        raise UserError(f"--format {format}: {source} holds learnt tokens, and no adapter. Choose {TOKENS}.")
    if strength != 1:
        raise UserError(f"--strength {strength:g}: learnt tokens have none. Leave it out.")
    placeholder, _ = soft_prompt.read(file)
    name = re.sub(r"[^\w.-]+", "", placeholder).strip(".") or "learnt"
    return write(folder / f"{name}.safetensors", file.read_bytes(), "--output")


def in_float32(config: Any) -> Any:
    """A model's config with every component in float32 and none quantised: merging in bf16 would round most of an
    adapter away, and a quantised weight cannot be added to."""
    whole = {"dtype": Dtypes(network="fp32", text="fp32", vae="fp32"), "quantize": None}
    return config.model_copy(update={name: value for name, value in whole.items() if name in type(config).model_fields})


def _scaled(file: AdapterFile, strength: float) -> dict[str, Any]:
    return {module: (a, b * strength) for module, (a, b) in file.layers.items()}


def _plain(file: AdapterFile, what: str) -> None:
    if file.magnitudes:
        raise UserError(f"--format {what}: the adapter is a DoRA, whose trained norms this cannot hold. Choose merged.")
