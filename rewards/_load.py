"""Checkpoints, verified: the published sha256 where there is one, every key always; errors name the file.

A state dict that lacks a key leaves random values behind, and scores that look plausible; a key too many means that the
network is another. So a file is loaded strictly or not at all.
"""

import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards._errors import RewardError
from rewards._preprocess import Preprocess
from rewards._reach import reach

CONSTANTS = ("position_ids", "inv_freq")
"""Ends of the names of buffers that older files carry along, and that networks now make themselves."""


def load_hf(kind: Any, model: str, *, unused: tuple[str, ...] = (), dtype: torch.dtype = torch.float32) -> Any:
    """A transformers model of class `kind` from a folder or a Hub id, its keys matched strictly.

    Keys that start with one of `unused` may be missing, or be too many: parts that no score depends on.
    """
    reach(model)
    try:
        with _without_bars() if Path(model).is_dir() else nullcontext():
            network, info = kind.from_pretrained(model, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise RewardError(not_loaded(model, error)) from error
    extra = [key for key in info["unexpected_keys"] if not key.endswith(CONSTANTS)]
    _refuse(model, kind.__name__, info["missing_keys"], extra, unused)
    return network


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], file: Path | str) -> None:
    """Copies `state` into `network`; a RewardError names `file` and the keys that do not match."""
    own = network.state_dict()
    _refuse(str(file), type(network).__name__, own.keys() - state.keys(), state.keys() - own.keys())
    for key, tensor in own.items():
        if tensor.shape != state[key].shape:
            raise RewardError(
                f"{file}: {key} has shape {tuple(state[key].shape)}, {type(network).__name__} wants "
                f"{tuple(tensor.shape)}. It is the checkpoint of another architecture: give the right one."
            )
    network.load_state_dict(dict(state))


def _refuse(where: str, what: str, missing: Any, unexpected: Any, unused: tuple[str, ...] = ()) -> None:
    lacks, extra = (sorted(k for k in keys if not k.startswith(unused or ("\0",))) for keys in (missing, unexpected))
    if lacks:
        raise RewardError(
            f"{where} is not a complete {what}: it has no weights for {', '.join(lacks[:3])}"
            f"{f' and {len(lacks) - 3} more' if len(lacks) > 3 else ''}. Give a checkpoint of this model."
        )
    if extra:
        raise RewardError(
            f"{where} is not a {what}: it has weights that the model has no place for, {', '.join(extra[:3])}"
            f"{f' and {len(extra) - 3} more' if len(extra) > 3 else ''}. Give a checkpoint of this model."
        )


def load_hf_empty(kind: str, model: str, dtype: torch.dtype) -> Any:
    """A transformers model of the class called `kind` as the config of a folder or a Hub id says; its weights are not
    those of a checkpoint yet."""
    import transformers

    found = getattr(transformers, kind)
    try:
        config = found.config_class.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise RewardError(not_loaded(model, error)) from error
    return found._from_config(config, dtype=dtype)


def read_state(file: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The state dict in a safetensors or torch file (also under its key "state_dict" or "model"), its floats as
    `dtype`."""
    refuse_torchscript(file)
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises what its bytes happen to mean
        raise RewardError(f"{file} cannot be read as weights: {_first_line(error)}. Download it again.") from error
    while isinstance(state, Mapping) and (inner := next((k for k in ("state_dict", "model") if k in state), None)):
        state = state[inner]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RewardError(f"{file} holds no state dict (names -> tensors). Give a file of weights.")
    return {
        key.removeprefix("module."): value.to(dtype) if value.is_floating_point() else value
        for key, value in state.items()
    }


def refuse_torchscript(file: Path) -> None:
    """Refuses a TorchScript archive, as OpenAI's own .pt files of CLIP are: to read it is to load its code."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.namelist()
    except zipfile.BadZipFile:
        return
    if any(name.endswith("/constants.pkl") for name in members):
        raise RewardError(
            f"{file} is a TorchScript archive, which holds code and is not read. If it is OpenAI's CLIP, give the same "
            "weights as model: openai/clip-vit-large-patch14 or open_clip:ViT-L-14/openai (or your size); otherwise "
            "save the state dict alone."
        )


def given_file(reward: str, key: str, path: str) -> Path:
    """The file that the setting `key` of a reward names."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise RewardError(f"reward {reward}: {key}={path}: there is no such file. Check the path.")
    return file


def hub_file(reward: str, key: str, repo: str, name: str) -> Path:
    """A file of the Hub, cached, its bytes held against the sha256 under which the Hub stores it."""
    from huggingface_hub import hf_hub_download

    try:
        file = Path(hf_hub_download(repo, name))
    except Exception as error:  # the Hub's client and its transport raise many kinds
        raise RewardError(
            f"reward {reward}: {name} of {repo} is neither cached nor to be had: {_first_line(error)}. Download it "
            f"elsewhere and set {key} to the file."
        ) from None
    stored = file.resolve().name  # large files lie in the cache under their sha256
    if len(stored) == 64:
        verify(file, stored)
    return file


def url_file(reward: str, key: str, url: str, name: str, digest: str | None) -> Path:
    """A file downloaded once into torch.hub's folder of checkpoints, its sha256 checked each time."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file), hash_prefix=digest)
        except (OSError, RuntimeError) as error:
            raise RewardError(
                f"reward {reward}: {name} could not be downloaded from {url} ({_first_line(error)}). Download it "
                f"elsewhere and set {key} to the file."
            ) from error
    if digest is not None:
        verify(file, digest)
    return file


def verify(file: Path, digest: str) -> None:
    """Refuses a file whose sha256 does not begin with `digest`."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(digest):
        raise RewardError(
            f"{file} is damaged or not what was published: its sha256 is {found[:12]}..., not {digest[:12]}.... "
            "Delete it, and it is downloaded again."
        )


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a folder or a Hub id."""
    from transformers import AutoTokenizer

    reach(model)
    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, ImportError) as error:
        raise RewardError(not_loaded(model, error)) from error


def hf_config(model: str) -> dict[str, Any]:
    """What the config.json of a folder or a Hub id says."""
    from transformers import PretrainedConfig

    reach(model)
    try:
        return PretrainedConfig.get_config_dict(model)[0]
    except (OSError, ValueError) as error:
        raise RewardError(not_loaded(model, error)) from error


def hf_preprocess(model: str, kind: type[Preprocess] = Preprocess) -> Preprocess:
    """What the preprocessor_config.json of a folder or a Hub id says, as a `kind`."""
    from transformers.image_processing_base import ImageProcessingMixin

    reach(model)
    try:
        config, _ = ImageProcessingMixin.get_image_processor_dict(model)
        return kind.from_hf(config)
    except (OSError, ValueError) as error:
        raise RewardError(not_loaded(model, error)) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Reading local weights takes no time that is worth a progress bar."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def not_loaded(model: str, error: Exception) -> str:
    """One line on a model that a library could not load."""
    if model.startswith(("/", ".", "~")) and not Path(model).expanduser().exists():
        return f"{model}: there is no such folder. Give the folder of a model, or its Hub id."
    if (file := Path(model).expanduser()).is_file():
        return (
            f"{model} is a file; give the folder of a model in HF's format, or its Hub id. Weights of a CLIP in one "
            f"file are open_clip:NAME/{file.absolute()}, NAME being open_clip's (ViT-L-14)."
        )
    return (
        f"{model} could not be loaded: {_first_line(error)}. Give a local folder, or a Hub id that is cached or can be "
        "downloaded."
    )


def _first_line(error: Exception) -> str:
    text = re.sub(r"\x1b\[\d*m", "", str(error)).strip()  # some colour their messages
    return (text or type(error).__name__).splitlines()[0].rstrip(".")
