"""Zero-shot detectors of transformers: images and names of objects -> a logit and a box for each query.

    owlvit, owlv2                        one pass for all names; a query is a patch of the image
    grounding-dino, mm-grounding-dino    one pass for each name ("a dog."); its logit is the greatest over its tokens

Logits and boxes are those of transformers' zero-shot-object-detection pipeline with its PIL processors; here they carry
a gradient. OWLv2 pads to a square, below and to the right, blurs and zooms as scikit-image does: two matrices here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rewards._errors import RewardError
from rewards._load import hf_config, hf_preprocess, load_hf, load_tokenizer, not_loaded
from rewards._preprocess import Preprocess, differentiable_resize, normalise, quantise

KINDS = {
    "owlvit": "OwlViTForObjectDetection",
    "owlv2": "Owlv2ForObjectDetection",
    "grounding-dino": "GroundingDinoForObjectDetection",
    "mm-grounding-dino": "MMGroundingDinoForObjectDetection",
}


class Detector(nn.Module):
    """A network of one of the KINDS, from a folder or a Hub id; `query` is what is asked for a name, {} in it."""

    def __init__(self, model: str, query: str | None = None):
        super().__init__()
        import transformers

        kind = hf_config(model).get("model_type")
        if kind not in KINDS:
            raise RewardError(
                f"reward detector: {model} is a {kind}. Give a zero-shot detector: {', '.join(KINDS)}, such as "
                "google/owlv2-base-patch16-ensemble or IDEA-Research/grounding-dino-tiny."
            )
        self.owl = kind.startswith("owl")
        self.query = query or ("a photo of a {}" if self.owl else "a {}.")
        self.network: Any = load_hf(getattr(transformers, KINDS[kind]), model, unused=("class_embed.", "bbox_embed."))
        self.tokenizer: Any = load_tokenizer(model)
        self.preprocess = Padded.of(model) if kind == "owlv2" else hf_preprocess(model, Limited)

    def forward(self, images: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [0, 1] -> logits (B, names, Q), boxes (B, names, Q, 4): x0, y0, x1, y1 in pixels."""
        pixels, texts = self.preprocess(images).to(self.network.dtype), [self.query.format(name) for name in names]
        height, width = images.shape[2:]
        if self.owl:
            logits, boxes = self._owl(pixels, texts)
            boxes = boxes[:, None].expand(-1, len(names), -1, -1)
        else:
            found = [self._dino(pixels, text) for text in texts]
            logits, boxes = (torch.stack(part, 1) for part in zip(*found, strict=True))
        side = max(height, width)
        size = (side, side) if isinstance(self.preprocess, Padded) else (width, height)
        middle, half = boxes[..., :2], boxes[..., 2:] / 2
        return logits, torch.cat([middle - half, middle + half], -1) * boxes.new_tensor([*size, *size])

    def _owl(self, pixels: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").to(
            pixels.device
        )
        rows = {key: tokens[key].repeat(len(pixels), 1) for key in ("input_ids", "attention_mask")}
        out = self.network(pixel_values=pixels, **rows)
        return out.logits.float().transpose(1, 2), out.pred_boxes.float()

    def _dino(self, pixels: Tensor, text: str) -> tuple[Tensor, Tensor]:
        tokens = self.tokenizer(text.lower(), return_tensors="pt", return_token_type_ids=True).to(pixels.device)
        rows = {key: value.repeat(len(pixels), 1) for key, value in tokens.items()}
        out = self.network(pixel_values=pixels, **rows)
        return out.logits.float().amax(-1), out.pred_boxes.float()


@dataclass(frozen=True)
class Limited(Preprocess):
    """As `Preprocess`, with a limit on the long side, in DETR's way of counting (shortest_edge, longest_edge), and
    sides rounded up to multiples of `divisor`."""

    longest: int | None = None
    divisor: int = 1

    @classmethod
    def from_hf(cls, config: Any) -> "Limited":
        made: Any = super().from_hf({**config, "resample": config.get("resample", 2)})
        size = config.get("size")
        longest = size.get("longest_edge") if isinstance(size, dict) else None
        return replace(made, longest=longest, divisor=config.get("size_divisor") or 1)

    def __call__(self, images: Tensor) -> Tensor:
        if self.longest is None or not isinstance(self.size, int):
            return super().__call__(images)
        exact = _within(images.shape[2:], self.size, self.longest)
        height, width = (math.ceil(side / self.divisor) * self.divisor for side in exact)
        size = height, width
        return normalise(differentiable_resize(quantise(images), size, self.mode), self.mean, self.std)


def _within(size: Sequence[int], shortest: int, longest: int) -> tuple[int, int]:
    """(h, w): the short side at `shortest`, or at what keeps the long one within `longest`."""
    short, long = min(size), max(size)
    exact = min(float(shortest), longest * short / long)
    new = round(exact)
    if short == new:
        return size[0], size[1]
    scale = exact if exact < shortest else float(new)
    other = int(scale * long / short)
    return (new, other) if size[0] <= size[1] else (other, new)


class Padded:
    """OWLv2's: to a square with black below and to the right; a blur of sigma = (f - 1) / 2 where it shrinks f-fold;
    linear interpolation."""

    def __init__(self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]):
        self.size, self.mean, self.std = size, tuple(mean), tuple(std)

    @classmethod
    def of(cls, model: str) -> "Padded":
        from transformers.image_processing_base import ImageProcessingMixin

        try:
            config, _ = ImageProcessingMixin.get_image_processor_dict(model)
            size = config["size"]
            made = Preprocess.from_hf({**config, "resample": 2})
            return cls((size["height"], size["width"]), made.mean, made.std)
        except (OSError, ValueError, KeyError) as error:
            raise RewardError(not_loaded(model, error)) from error

    def __call__(self, images: Tensor) -> Tensor:
        images = quantise(images)
        height, width = images.shape[2:]
        side = max(height, width)
        square = pad(images, (0, side - width, 0, side - height))
        rows, columns = (_zoom(side, n, images.device).to(images.dtype) for n in self.size)
        out = rows @ square @ columns.T
        low, high = square.flatten(1).amin(1), square.flatten(1).amax(1)
        return normalise(out.clamp(low.view(-1, 1, 1, 1), high.view(-1, 1, 1, 1)), self.mean, self.std)


@lru_cache(maxsize=16)
def _zoom(source: int, target: int, device: torch.device) -> Tensor:
    """(target, source): a Gaussian of 4 sigma, then linear interpolation between the middles of pixels; both mirror the
    image about the middle of its last pixels."""
    factor = source / target
    sigma = max(0.0, (factor - 1) / 2)
    blur = torch.zeros(source, source, dtype=torch.float64)
    reach = int(4 * sigma + 0.5)
    taps = [math.exp(-0.5 * (k / sigma) ** 2) if sigma else 1.0 for k in range(-reach, reach + 1)]
    for row in range(source):
        for k, tap in zip(range(-reach, reach + 1), taps, strict=True):
            blur[row, _mirror(row + k, source)] += tap / sum(taps)
    line = torch.zeros(target, source, dtype=torch.float64)
    for row in range(target):
        place = (row + 0.5) * factor - 0.5
        first = math.floor(place)
        for k, share in ((first, 1 - (place - first)), (first + 1, place - first)):
            line[row, _mirror(k, source)] += share
    return (line @ blur).to(device)


def _mirror(k: int, length: int) -> int:
    if length == 1:
        return 0
    k = abs(k) % (2 * length - 2)
    return k if k < length else 2 * length - 2 - k
