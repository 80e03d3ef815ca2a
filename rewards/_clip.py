"""CLIP towers from HF or open_clip behind one interface: images or prompts -> unit vectors in float32.

    image embedding u = P_v f_v(pixels) / |.|,  text embedding w = P_t f_t(tokens) / |.|,  cosine = u . w
    (Radford et al. 2021, arXiv:2103.00020)

The image tower may run in bfloat16; projection, norm and dot product stay in float32, where 16 bits would cost 2e-3 of
cosine: more than separates good images. Prompts carry no gradient, so each is encoded once, in float32, and kept.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rewards._errors import RewardError
from rewards._preprocess import Preprocess

_MAX_CACHED_PROMPTS = 16384  # 64 MiB at 1024 dimensions


class ClipBackbone(nn.Module):
    """Frozen image and text towers of one checkpoint; subclasses say how a library spells them."""

    preprocess: Preprocess
    logit_scale: float
    """exp of the learned temperature: about 100 for OpenAI's and LAION's checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self._cache: dict[str, Tensor] = {}

    def images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> unit embeddings (B, D), with graph."""
        return normalize(self._project_images(self.preprocess(images)), dim=-1)

    def prompts(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """B prompts -> unit embeddings (B, D) on `device`, without graph, each distinct prompt encoded once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        if new:
            if len(self._cache) + len(new) > _MAX_CACHED_PROMPTS:
                self._cache.clear()
                new = list(dict.fromkeys(prompts))
            with torch.no_grad():
                rows = normalize(self._project_prompts(new, device), dim=-1)
            self._cache.update(zip(new, rows, strict=True))
        return torch.stack([self._cache[prompt].to(device) for prompt in prompts])

    def _project_images(self, pixel_values: Tensor) -> Tensor:
        raise NotImplementedError

    def _project_prompts(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        raise NotImplementedError


class HFClip(ClipBackbone):
    """A transformers CLIPModel from a folder or a Hub id; preprocessing as its preprocessor_config.json says."""

    def __init__(self, model: str, dtype: torch.dtype = torch.float32):
        super().__init__()
        from transformers import AutoTokenizer, CLIPModel

        network = load_hf(CLIPModel, model)
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise RewardError(_not_loaded(model, error)) from error
        self.network = network
        self.network.vision_model.to(dtype)
        self.tokenizer = tokenizer
        self.max_tokens = network.config.text_config.max_position_embeddings
        self.preprocess = hf_preprocess(model)
        self.logit_scale = float(network.logit_scale.detach().exp())
        self.dtype = dtype

    def _project_images(self, pixel_values: Tensor) -> Tensor:
        pooled = self.network.vision_model(pixel_values.to(self.dtype)).pooler_output
        return self.network.visual_projection(single(pooled))

    def _project_prompts(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(device)
        pooled = self.network.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return self.network.text_projection(pooled)


class OpenClip(ClipBackbone):
    """An open_clip model: `NAME/PRETRAINED` (a tag or a file), `hf-hub:ORG/REPO`, or `local-dir:FOLDER`.

    OpenAI's weights need QuickGELU: open_clip knows so by the tag "openai"; with a file of your own choose the
    `-quickgelu` variant of the name.
    """

    def __init__(self, model: str, dtype: torch.dtype = torch.float32):
        super().__init__()
        open_clip = import_open_clip()
        name, _, pretrained = (model, "", "") if model.startswith(("hf-hub:", "local-dir:")) else model.partition("/")
        if name == model and ":" not in name:
            raise RewardError(f"open_clip:{model} names no weights: write open_clip:{model}/TAG, or /path/to/a/file.")
        try:
            self.network: Any = open_clip.create_model(name, pretrained=pretrained or None, require_pretrained=True)
            self.tokenizer: Any = open_clip.get_tokenizer(name)
        except (OSError, RuntimeError, ValueError) as error:
            raise RewardError(_not_loaded(f"open_clip:{model}", error)) from error
        self.preprocess = Preprocess.from_open_clip(open_clip.get_model_preprocess_cfg(self.network))
        self.logit_scale = float(self.network.logit_scale.detach().exp())
        self.dtype = dtype
        self.image_projection: nn.Parameter | None = None
        if dtype != torch.float32 and isinstance(getattr(self.network.visual, "proj", None), nn.Parameter):
            self.image_projection, self.network.visual.proj = self.network.visual.proj, None  # stays float32
        self.network.visual.to(dtype)

    def _project_images(self, pixel_values: Tensor) -> Tensor:
        features = single(self.network.encode_image(pixel_values.to(self.dtype)))
        return features if self.image_projection is None else features @ self.image_projection

    def _project_prompts(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        return self.network.encode_text(self.tokenizer(list(prompts)).to(device))


def load_hf(kind: Any, model: str) -> Any:
    """A transformers model of class `kind` in float32 from a folder or a Hub id; all its weights must be there."""
    try:
        with _without_bars() if Path(model).is_dir() else nullcontext():
            network, info = kind.from_pretrained(model, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise RewardError(_not_loaded(model, error)) from error
    if missing := sorted(info["missing_keys"]):  # transformers would leave these at random values
        raise RewardError(f"{model} is not a complete CLIP: it has no weights for {', '.join(missing[:3])}.")
    return network


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


def hf_preprocess(model: str) -> Preprocess:
    """What the preprocessor_config.json of a folder or a Hub id says."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        config, _ = ImageProcessingMixin.get_image_processor_dict(model)
        return Preprocess.from_hf(config)
    except (OSError, ValueError) as error:
        raise RewardError(_not_loaded(model, error)) from error


def load_clip(model: str, dtype: torch.dtype = torch.float32) -> ClipBackbone:
    """`open_clip:NAME/PRETRAINED`, otherwise a folder or a Hub id in HF's format."""
    library, _, rest = model.partition(":")
    return OpenClip(rest, dtype) if library == "open_clip" else HFClip(model, dtype)


def import_open_clip() -> Any:
    """The open_clip module; one line instead of its traceback when torch and torchvision do not match."""
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:
        raise RewardError(
            f"open_clip cannot be imported ({error}). It needs torchvision from the same source as torch: install "
            f"both with one pip command (this torch is {torch.__version__})."
        ) from error
    return open_clip


def single(x: Tensor) -> Tensor:
    """Half precision -> float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _not_loaded(model: str, error: Exception) -> str:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if model.startswith(("/", ".", "~")) and not Path(model).expanduser().exists():
        return f"{model}: there is no such folder. Give the folder of a CLIP model, or its Hub id."
    return (
        f"{model} could not be loaded as a CLIP: {first_line}. Give a local folder, or a Hub id that is cached or "
        "can be downloaded."
    )
