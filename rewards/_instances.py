"""Mask2Former of transformers on COCO's 80 kinds of objects: GenEval's own network, by GenEval's way of reading it.

Of query q with class logits c_q and mask logits m_q, brought to the image's size by linear interpolation:

    p_q(k) = softmax(c_q)_k s_q,   s_q = sum of sigmoid(m_q) where m_q > 0, over the number of pixels where it is
    box    = the least one around m_q > 0

and only as many pairs (q, k) as there are queries are looked at, those of the greatest softmax (mmdet's Mask2Former;
Cheng et al. 2022, arXiv 2112.01527). p has a gradient, the box has none.
"""

import json
from collections.abc import Sequence
from pathlib import Path
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
        known(names)
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


def known(names: Sequence[str]) -> None:
    """Refuses names of objects that are none of COCO's."""
    if unknown := [name for name in names if name not in NAMES]:
        raise RewardError(
            f"a prompt asks for {unknown[0]!r}, which is none of COCO's 80 objects. Take a zero-shot detector: model: "
            "google/owlv2-base-patch16-ensemble."
        )


def is_of_coco(model: str) -> bool:
    """Whether a folder or a Hub id is a Mask2Former, as far as this machine knows: nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path(model).expanduser()
    cached = folder / "config.json" if folder.is_dir() else None
    if cached is None and model.count("/") == 1:
        found = try_to_load_from_cache(model, "config.json")
        cached = Path(found) if isinstance(found, str) else None
    try:
        told = None if cached is None else json.loads(cached.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        told = None
    return told.get("model_type") == KIND if isinstance(told, dict) else KIND in model.lower()


def _around(mask: Tensor) -> Tensor:
    """(H, W) -> the box around what is true, (4,); of nothing, no area."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    if not len(rows):
        return torch.zeros(4, device=mask.device)
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
