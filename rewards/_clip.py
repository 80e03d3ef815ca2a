"""CLIP towers from HF or open_clip behind one interface: images or prompts -> unit vectors in float32.

    image embedding u = P_v f_v(pixels) / |.|,  text embedding w = P_t f_t(tokens) / |.|,  cosine = u . w
    (Radford et al. 2021, arXiv:2103.00020)

The image tower may run in bfloat16; projection, norm and dot product stay in float32, where 16 bits would cost 2e-3 of
cosine: more than separates good images. Prompts carry no gradient, so each is encoded once, in float32, and kept.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rewards._errors import RewardError
from rewards._load import given_file, hf_preprocess, load_hf, load_strictly, load_tokenizer, not_loaded, read_state
from rewards._preprocess import Preprocess
from rewards._text import PromptCache


class ClipBackbone(nn.Module):
    """Frozen image and text towers of one checkpoint; subclasses say how a library spells them."""

    preprocess: Preprocess
    logit_scale: float
    """exp of the learned temperature: about 100 for OpenAI's and LAION's checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self._cache = PromptCache(self._one_prompt)

    def images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> unit embeddings (B, D), with graph."""
        return normalize(self._project_images(self.preprocess(images)), dim=-1)

    def prompts(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """B prompts -> unit embeddings (B, D) on `device`, without graph, each distinct prompt encoded once."""
        return self._cache(prompts, device)

    def _one_prompt(self, prompt: str, device: torch.device) -> Tensor:
        return normalize(self._project_prompts([prompt], device), dim=-1)[0]

    def _project_images(self, pixel_values: Tensor) -> Tensor:
        raise NotImplementedError

    def _project_prompts(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        raise NotImplementedError


class HFClip(ClipBackbone):
    """A transformers CLIPModel from a folder or a Hub id; preprocessing as its preprocessor_config.json says.

    `processor`: where tokenizer and preprocessing are read from, when not from the model itself.
    """

    def __init__(self, model: str, dtype: torch.dtype = torch.float32, processor: str | None = None):
        super().__init__()
        from transformers import CLIPModel

        self.network = load_hf(CLIPModel, model)
        self.network.vision_model.to(dtype)
        self.tokenizer = load_tokenizer(processor or model)
        self.max_tokens = self.network.config.text_config.max_position_embeddings
        self.preprocess = hf_preprocess(processor or model)
        self.logit_scale = float(self.network.logit_scale.detach().exp())
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
        of_a_file = pretrained.startswith(("/", ".", "~")) or "." in pretrained
        file = given_file("clip", "model", pretrained) if of_a_file else None
        tag = None if file else pretrained or None
        try:
            with nullcontext() if file is None else _without_warnings():
                self.network: Any = open_clip.create_model(name, pretrained=tag, require_pretrained=file is None)
            self.tokenizer: Any = open_clip.get_tokenizer(name)
        except (OSError, RuntimeError, ValueError) as error:
            raise RewardError(not_loaded(f"open_clip:{model}", error)) from error
        if file is not None:
            load_strictly(self.network, read_state(file), file)
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


def load_clip(model: str, dtype: torch.dtype = torch.float32) -> ClipBackbone:
    """`open_clip:NAME/PRETRAINED`, otherwise a folder or a Hub id in HF's format."""
    library, _, rest = model.partition(":")
    return OpenClip(rest, dtype) if library == "open_clip" else HFClip(model, dtype)


def import_open_clip() -> Any:
    """The open_clip module; one line instead of its traceback when torch and torchvision do not match."""
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:
        raise torchvision_mismatch("open_clip", error) from error
    return open_clip


@contextmanager
def _without_warnings() -> Iterator[None]:
    """open_clip warns of random weights, which are replaced at once."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def torchvision_mismatch(package: str, error: Exception) -> RewardError:
    """One line on a package that stands on torchvision and could not be imported."""
    return RewardError(
        f"{package} cannot be imported ({error}). It needs torchvision from the same source as torch: install both "
        f"with one pip command (this torch is {torch.__version__})."
    )


def single(x: Tensor) -> Tensor:
    """Half precision -> float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
