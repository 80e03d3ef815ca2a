"""The colour of what lies in a box, as GenEval asks for it: CLIP on the cut-out, ten colours, three templates.

    p = softmax(s u . w_c),   w_c the mean of "a photo of a red dog", "a photo of a red-colored dog", "a photo of a red
    object", normalised; u the embedding of the cut-out, s CLIP's scale      (Ghosh et al. 2023, arXiv 2310.11513)

Where the network gives masks, what lies outside the object's is grey, as in GenEval; zero-shot detectors give none.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rewards._clip import load_clip
from rewards._demands import COLOURS

GREY = 0x99 / 255  # GenEval's
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


class ColourReader(nn.Module):
    """Cut-outs of an image -> probabilities of COLOURS."""

    def __init__(self, model: str):
        super().__init__()
        self.clip = load_clip(model)

    def forward(self, image: Tensor, boxes: Tensor, name: str, masks: Tensor | None = None) -> Tensor:
        """An image (3, H, W) in [0, 1], boxes (K, 4) in pixels, what they show -> (K, 10). The gradient is that of the
        pixels; where the box lies has none. masks (K, H, W): the pixels that are of the object."""
        texts = [t.format(colour=colour, name=name) for colour in COLOURS for t in TEMPLATES]
        words = self.clip.prompts(texts, image.device).view(len(COLOURS), len(TEMPLATES), -1)
        words = normalize(words.mean(1), dim=-1)
        shown = [image] * len(boxes) if masks is None else [torch.where(mask, image, GREY) for mask in masks]
        cut = [self.clip.images(_cut(one, box)[None]) for one, box in zip(shown, boxes.detach(), strict=True)]
        return (self.clip.logit_scale * torch.cat(cut) @ words.T).softmax(-1)


def _cut(image: Tensor, box: Tensor) -> Tensor:
    """The pixels of a box, at least one, and not so thin that it could not be resized."""
    height, width = image.shape[1:]
    x0, y0, x1, y1 = (round(float(side)) for side in box)
    x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    x1, y1 = min(max(x1, x0 + 1), width), min(max(y1, y0 + 1), height)
    return image[:, y0 : max(y1, min(y0 + (x1 - x0) // 32, height)), x0 : max(x1, min(x0 + (y1 - y0) // 32, width))]
