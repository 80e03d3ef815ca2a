"""Mask2Former of transformers on COCO's 80 kinds of objects: GenEval's own network, by GenEval's way of reading it.

Of query q with class logits c_q and mask logits m_q, brought to the image's size by linear interpolation:

    p_q(k) = softmax(c_q)_k s_q,   s_q = sum of sigmoid(m_q) where m_q > 0, over the number of pixels where it is
    box    = the least one around m_q > 0

and only as many pairs (q, k) as there are queries are looked at, those of the greatest softmax (mmdet's Mask2Former;
Cheng et al. 2022, arXiv 2112.01527). p has a gradient, the box has none.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from rewards._coco import NAMES
from rewards._errors import RewardError
from rewards._load import hf_config, hf_preprocess, load_hf
from rewards._zero_shot import Limited

KIND = "mask2former"
NEVER = -30.0  # logit of what is not looked at
ALIKE = 70  # of the 80 names; some checkpoints say tvmonitor, sofa, ...


class Masked(NamedTuple):
    """What is seen in B images."""

    logits: Tensor
    """(B, names, Q)"""
    boxes: Tensor
    """(B, names, Q, 4): x0, y0, x1, y1 in pixels."""
    masks: Tensor
    """(B, Q, H, W), whether a pixel is of the object."""


class Instances(nn.Module):
    """From a folder or a Hub id, such as facebook/mask2former-swin-small-coco-instance."""

    def __init__(self, model: str):
        super().__init__()
        from transformers import Mask2FormerForUniversalSegmentation

        known = {int(k): str(v) for k, v in (hf_config(model).get("id2label") or {}).items()}
        same = sum(name in known.get(k, "") or known.get(k, "-") in name for k, name in enumerate(NAMES))
        if len(known) != len(NAMES) or same < ALIKE:
            raise RewardError(
                f"reward detector: {model} does not tell COCO's 80 objects apart, it has {len(known)} classes. Take "
                "facebook/mask2former-swin-small-coco-instance, or a zero-shot detector such as OWLv2."
            )
        self.network: Any = load_hf(Mask2FormerForUniversalSegmentation, model, unused=("criterion.",))
        self.preprocess = hf_preprocess(model, Limited)

    def forward(self, images: Tensor, names: Sequence[str]) -> Masked:
        """Images (B, 3, H, W) in [0, 1]."""
        unknown = [name for name in names if name not in NAMES]
        if unknown:
            raise RewardError(
                f"a prompt asks for {unknown[0]!r}, which is none of COCO's 80 objects. Take a zero-shot detector: "
                "model: google/owlv2-base-patch16-ensemble."
            )
        kinds = [NAMES.index(name) for name in names]
        pixels = self.preprocess(images).to(self.network.dtype)
        out = self.network(pixel_values=pixels)
        found = [
            self._read(c.float(), m.float(), kinds, pixels.shape[2:], images.shape[2:])
            for c, m in zip(out.class_queries_logits, out.masks_queries_logits, strict=True)
        ]
        return Masked(*(torch.stack(part) for part in zip(*found, strict=True)))

    def _read(
        self, classes: Tensor, masks: Tensor, kinds: Sequence[int], inner: Sequence[int], outer: Sequence[int]
    ) -> Masked:
        """One image: classes (Q, 81), masks (Q, h, w)."""
        for size in (inner, outer):
            masks = interpolate(masks[None], tuple(size), mode="bilinear", align_corners=False)[0]
        there = masks > 0
        score = (masks.sigmoid() * there).flatten(1).sum(1) / (there.flatten(1).sum(1) + 1e-6)
        shares = classes.softmax(-1)[:, :-1]
        least = shares.detach().flatten().topk(len(shares)).values[-1]
        chances = (shares * score[:, None]).T[list(kinds)]
        looked = (shares.T[list(kinds)] >= least) & (chances > 0)
        logits = torch.where(looked, torch.logit(chances.clamp(1e-6, 1 - 1e-6)), NEVER)
        boxes = torch.stack([_around(one) for one in there])
        return Masked(logits, boxes.expand(len(kinds), -1, -1), there)


def _around(mask: Tensor) -> Tensor:
    """(H, W) -> the box around what is true, (4,); of nothing, no area."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    if not len(rows):
        return torch.zeros(4, device=mask.device)
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
