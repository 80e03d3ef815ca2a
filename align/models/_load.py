"""A diffusers pipeline from a Hub id, a local folder or one .safetensors file; what goes wrong is said in one line."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from align.errors import UserError
from align.files.texts import Unreadable, json_value, read_text
from align.models._base import Dtypes
from align.models._network import dtype_keyword, is_file
from align.models._options import Attention, missing_package
from align.models._quantize import Quantize
from align.models._reach import moved, reach
from align.registry import EMBEDDED, ComponentConfig


class CheckpointConfig(ComponentConfig):
    """Where a model comes from and how it is held in memory; the fields that all families share."""

    sdpa_only: ClassVar[str] = ""
    """Why the family's attention has no other kernel, where it has none."""
    checkpoint: str
    """Hub id, local diffusers folder, or one .safetensors file."""
    config_dir: str | None = None
    """For a single file: a local diffusers folder with its configs and tokenizer, so that nothing is downloaded."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    variant: str | None = None
    """Weight files to prefer, such as fp16 for diffusion_pytorch_model.fp16.safetensors."""
    dtype: Dtypes = Dtypes()
    """Precision of each component."""
    attention: Attention = "sdpa"
    """Attention kernel of the network; the last two need their package and a GPU."""
    network: str | None = None
    """A network in place of the checkpoint's, such as a distilled one published without its pipeline: a folder or
    Hub id (its subfolder unet or transformer, or itself), a .safetensors file, or `owner/name:file.safetensors`."""
    base_adapter: str | None = None
    """An adapter that becomes part of the frozen base, such as a few-step one (LCM-LoRA, Hyper-SD): a folder, a file,
    a Hub id, or `owner/name:file.safetensors`. What is trained comes on top, and is used with it."""
    preset: Literal["24gb", "16gb", "8gb"] | None = None
    """Settings for a GPU of so much memory, spelled out when the recipe is read: recomputation, micro-batch, rewards
    and text encoders off the GPU, and where it must be a quantised base. What is set beside it stays."""
    quantize: Quantize | None = None
    """How the network's frozen linear weights are kept: nf4 (4.5 bits each) or int8 of bitsandbytes, or torchao's int8.
    Adapters, activations and gradients are not quantised. Needs the package: diffalign[bnb] or diffalign[torchao]."""
    offload_text: bool = False
    """Keep the text encoders in CPU memory but while they encode prompts that were not encoded before."""
    text_on_cpu: bool = False
    """Keep the text encoders in CPU memory and encode there: no GPU memory, seconds to a minute a prompt, once each."""
    offload: Literal["group"] | None = None
    """group: in training the network's blocks stay in CPU memory, and each comes to the GPU for each of its calls and
    its way back. Slower by what the transfers take; no precision is lost."""
    checkpoint_blocks: bool = False
    """Also recompute each block of the network and of the decoder in the backward pass: less memory, more time."""
    decode_chunk: int | None = Field(default=None, ge=1)
    """Images decoded, and recomputed in the backward pass, at once. Default: as many as a megapixel holds, 1 to 8."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if not self.checkpoint.startswith(EMBEDDED) and _nowhere(self.checkpoint):
            yield ".checkpoint", f"{self.checkpoint}: {NOWHERE}"
        elif elsewhere := moved(self.checkpoint):
            yield ".checkpoint", f"{self.checkpoint}: {elsewhere}"
        if self.network is not None and not is_file(self.network) and _nowhere(self.network):
            yield ".network", f"{self.network}: {NOWHERE}"
        if problem := self.attention_problem():
            yield ".attention", problem
        if self.offload is not None:
            yield from self._kept_whole(recipe)

    def _kept_whole(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What does not go with a network that comes block by block."""
        train = recipe.get("train")
        asked = {"model.quantize": self.quantize} | {f"train.{key}": getattr(train, key, False) for key in WHOLE}
        for key, value in asked.items():
            if value:
                yield ".offload", f"does not go with {key}={str(value).lower()}. Unset one of them."

    def attention_problem(self) -> str | None:
        """What stands in the way of the kernel asked for, as far as the family and the packages go."""
        if self.sdpa_only and self.attention != "sdpa":
            return f"{self.sdpa_only} Use sdpa."
        return missing_package(self.attention)


WHOLE = ("compile", "auto_micro_batch")
"""Settings of training that need the network in one piece."""
NOWHERE = "no such folder or file, and not a Hub id (owner/name) either. Check the path."


def _nowhere(checkpoint: str) -> bool:
    path = Path(checkpoint).expanduser()
    hub = checkpoint.count("/") == 1 and not path.is_absolute() and not checkpoint.startswith((".", "~"))
    return not path.exists() and (not hub or path.suffix == ".safetensors")


def load_pipeline(
    config: CheckpointConfig, class_names: Sequence[str], dtypes: dict[str, torch.dtype], **given: Any
) -> Any:
    """The checkpoint's pipeline, whose class is one of diffusers' `class_names`; the first is a single file's.

    dtypes: pipeline component -> dtype; given: components that are not read from it; None leaves one out.
    """
    import diffusers

    pipeline_class = getattr(diffusers, class_names[0])
    path = Path(config.checkpoint).expanduser()
    if path.is_file() or path.suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin"):
        return _from_file(config, path, pipeline_class, dtypes, given)
    found = pipeline_class_name(config)
    if found not in class_names:
        raise UserError(
            f"{_where(config)}: this is a {found}, and model.name={getattr(config, 'name', None)} "
            f"needs a {' or '.join(class_names)}. Change one of the two, or set model.name=auto."
        )
    pipeline_class = getattr(diffusers, found)
    given = _saved_without(_index(config), pipeline_class) | given
    with without_bars() if path.is_dir() else nullcontext():
        return _trying(
            config,
            lambda: pipeline_class.from_pretrained(
                path if path.is_dir() else config.checkpoint,
                **{dtype_keyword(): dtypes},
                use_safetensors=True,
                local_files_only=path.is_dir(),
                revision=config.revision,
                variant=config.variant,
                **given,
            ),
        )


@contextmanager
def without_bars() -> Iterator[None]:
    """Reading and writing local weights takes no time that is worth a progress bar."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [logging for logging in (of_diffusers, of_transformers) if logging.is_progress_bar_enabled()]
    for logging in shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging in shown:
            logging.enable_progress_bar()


def _from_file(
    config: CheckpointConfig, path: Path, pipeline_class: Any, dtypes: dict[str, torch.dtype], given: dict[str, Any]
) -> Any:
    if path.suffix != ".safetensors":
        raise UserError(
            f"{_where(config)}: only .safetensors files are read, because the others are pickles, "
            "which can run code. Convert it with diffusers' convert_original_stable_diffusion_to_diffusers.py."
        )
    if not path.is_file():
        raise UserError(f"{_where(config)}: no such file. Check the path.")
    if config.config_dir is None and _offline():
        raise UserError(
            f"{_where(config)}: a single file holds no configs or tokenizer, and HF_HUB_OFFLINE forbids to "
            "download them. Set model.config_dir to a local diffusers folder of the same family."
        )
    if config.config_dir is not None and not (Path(config.config_dir).expanduser() / "model_index.json").is_file():
        raise UserError(
            f"model.config_dir={config.config_dir}: no model_index.json in it. Give a local diffusers folder of the "
            "same family (its weights are not needed)."
        )
    folder = None if config.config_dir is None else str(Path(config.config_dir).expanduser())
    pipeline = _trying(
        config,
        lambda: pipeline_class.from_single_file(
            str(path), config=folder, local_files_only=folder is not None, revision=config.revision, **given
        ),
        hint="" if folder else "If the Hub cannot be reached, set model.config_dir to a local diffusers folder.",
    )
    for name, dtype in dtypes.items():
        module = getattr(pipeline, name)
        if module.dtype != dtype:
            module.to(dtype)
    return pipeline


def pipeline_class_name(config: CheckpointConfig) -> str:
    """What model_index.json, of a folder or on the Hub, says that the checkpoint is."""
    return str(_index(config).get("_class_name"))


def _index(config: CheckpointConfig) -> dict[str, Any]:
    path = Path(config.checkpoint).expanduser()
    if path.is_dir():
        index = path / "model_index.json"
        if not index.is_file():
            raise UserError(
                f"{_where(config)}: no model_index.json in this folder: it is not a diffusers pipeline. "
                "Give the folder that save_pretrained wrote, or the .safetensors file itself."
            )
        try:
            read: Any = json_value(read_text(index), str(index))
        except Unreadable as error:
            raise UserError(f"{_where(config)}: {error}") from None
        return read if isinstance(read, dict) else {}
    if _nowhere(config.checkpoint):
        raise UserError(f"{_where(config)}: {NOWHERE}")
    reach(config.checkpoint, config.revision, _where(config))
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    return _trying(config, lambda: DiffusionPipeline.load_config(config.checkpoint, revision=config.revision))


def _saved_without(index: Mapping[str, Any], pipeline_class: Any) -> dict[str, None]:
    """Components that the pipeline was saved without and that diffusers asks for nevertheless."""
    optional = pipeline_class._optional_components
    return {name: None for name, what in index.items() if what == [None, None] and name not in optional}


def _trying(config: CheckpointConfig, load: Any, hint: str = "") -> Any:
    try:
        return load()
    except Exception as error:  # diffusers, transformers, safetensors and the HTTP client each raise their own
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"{_where(config)}: it could not be loaded: {first_line} {hint}"
        raise UserError(message.strip()) from error


def _where(config: CheckpointConfig) -> str:
    return f"model.checkpoint={config.checkpoint}"


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE
