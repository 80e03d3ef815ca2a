"""What a reward is, before it is built: what it measures, its range, its size, its licence, and how it is gamed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

OPEN = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0", "cc-by-4.0", "unlicense", "0bsd",
}  # fmt: skip
"""SPDX names of licences that allow commercial use and ask for no more than to be named."""

UNSTATED = "unstated"

# Licences of checkpoints that are published under these names, as their cards or repositories state them.
_KNOWN = {
    "openai/clip-vit-": "MIT",
    "laion/CLIP-ViT-": "MIT",
    "google/siglip": "Apache-2.0",
    "Salesforce/blip-itm-": "BSD-3-Clause",
    "facebook/dinov2-": "Apache-2.0",
    "facebook/dino-vit": "Apache-2.0",
    "yuvalkirstain/PickScore_v1": UNSTATED,
    "facebook/mask2former-": UNSTATED,
    "google/owlv2-": "Apache-2.0",
    "google/owlvit-": "Apache-2.0",
    "IDEA-Research/grounding-dino-": "Apache-2.0",
    "Qwen/Qwen2-VL-7B": "Apache-2.0",
    "Qwen/Qwen2.5-VL-7B": "Apache-2.0",
    "Qwen/Qwen3-VL-": "Apache-2.0",
    "embedded:": "Apache-2.0",
}
_OPEN_CLIP_TAGS = {"openai": "MIT", "laion2b_": "MIT", "laion400m_": "MIT", "webli": "Apache-2.0"}


@dataclass(frozen=True)
class Card:
    """A reward in words, shown by `align rewards` and held against docs/reference/rewards.md by a test."""

    measures: str
    """One sentence."""
    range: str
    """Of the scores: bounds where there are some, typical values where they are known."""
    size: str
    """Parameters, or "no network"."""
    hacking: str
    """What images look like when the reward is over-optimised."""
    partner: str
    """Name of a reward that was made otherwise, to watch but not to train on."""
    licences: Mapping[str, str] = field(default_factory=dict)
    """{part: SPDX name or "unstated"} of weights and code that are not the toolkit's own."""


UNKNOWN = Card("not stated", "not stated", "not stated", "not stated", "clip", {"it": UNSTATED})
"""Of a reward that says nothing of itself."""


def licence_of(checkpoint: str) -> str:
    """SPDX name of a published checkpoint's licence, by its Hub id or open_clip name; "unstated" when not known."""
    if checkpoint.startswith("open_clip:"):
        tag = checkpoint.partition("/")[2]
        return next((licence for start, licence in _OPEN_CLIP_TAGS.items() if tag.startswith(start)), UNSTATED)
    return next((licence for start, licence in _KNOWN.items() if checkpoint.startswith(start)), UNSTATED)


def is_open(licence: str) -> bool:
    """Whether a licence is known to allow commercial use without further duties."""
    return licence.lower() in OPEN
