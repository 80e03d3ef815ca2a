"""Rewards at their published size without their checkpoints: networks are made from their architecture.

What a reward costs in memory and time depends on that alone: benchmarks fill it with random numbers, and a plan builds
it on the meta device.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards._preprocess import Preprocess

VIT_H: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                    "hidden_act": "gelu"},
    "vision_config": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
                      "num_attention_heads": 16, "patch_size": 14, "hidden_act": "gelu"},
}  # fmt: skip
VIT_L: dict[str, Any] = {
    "projection_dim": 768,
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                      "num_attention_heads": 16, "patch_size": 14},
}  # fmt: skip
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
SIGLIP: dict[str, Any] = {
    "text_config": SO400M | {"vocab_size": 32000},
    "vision_config": SO400M | {"image_size": 384, "patch_size": 14},
}
BLIP: dict[str, Any] = {
    "text_config": {"vocab_size": 30524, "encoder_hidden_size": 1024, "num_attention_heads": 12, "is_decoder": True},
    "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                      "num_attention_heads": 16, "image_size": 384, "patch_size": 16},
}  # fmt: skip
DINOV2 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 518, "patch_size": 14}
CROP = Preprocess(224, crop=(224, 224))
FILE = {"weights": "-"}  # a file that is not read
SQUASH = Preprocess((384, 384), mean=(0.5,) * 3, std=(0.5,) * 3)


@dataclass(frozen=True)
class Real:
    """What a reward is made of."""

    network: str
    """In words."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Of a network that is otherwise read from a folder."""
    preprocess: Preprocess | None = None
    """As the published preprocessor_config.json says, where there is one."""
    settings: dict[str, Any] = field(default_factory=dict)


REAL = {
    "pickscore": Real("CLIP ViT-H/14, 224 px", VIT_H, CROP),
    "hpsv2": Real("CLIP ViT-H/14 (open_clip), 224 px", VIT_H, CROP, FILE),
    "mps": Real("CLIP ViT-H/14 + cross-attention, 224 px", VIT_H, CROP, FILE),
    "clip": Real("CLIP ViT-L/14, 224 px", VIT_L, CROP),
    "aesthetic": Real("CLIP ViT-L/14, 224 px", VIT_L, CROP, {"head": "-"}),
    "imagereward": Real("BLIP ViT-L/16 + BERT, 224 px", settings=FILE),
    "cyclereward": Real("BLIP ViT-L/16 + BERT, 224 px", settings=FILE),
    "blip": Real("BLIP ViT-L/16 (ITC), 384 px", BLIP, Preprocess((384, 384))),
    "siglip": Real("SigLIP so400m/14, 384 px", SIGLIP, SQUASH),
    "aesthetic_v25": Real("SigLIP so400m/14, 384 px", SIGLIP, SQUASH, {"head": "-"}),
    "dino": Real("DINOv2 ViT-B/14, 224 px", DINOV2, Preprocess(256, crop=(224, 224)), {"reference": "-"}),
    "lpips": Real("AlexNet, every pixel", settings={"backbone": "-", "heads": "-", "reference": "-"}),
    "jpeg": Real("none", settings={"form": "rate"}),
    "symmetry": Real("none"),
    "colourfulness": Real("none"),
    "sharpness": Real("none"),
}

VIT_B: dict[str, Any] = {
    "projection_dim": 512,
    "text_config": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
    "vision_config": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                      "num_attention_heads": 12, "patch_size": 32},
}  # fmt: skip
CLIPS = {
    "openai/clip-vit-base-patch32": VIT_B,
    "openai/clip-vit-base-patch16": VIT_B | {"vision_config": VIT_B["vision_config"] | {"patch_size": 16}},
    "openai/clip-vit-large-patch14": VIT_L,
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": VIT_H,
}
"""Hub id -> architecture, of checkpoints that a reward's setting `model` may name."""


def real(name: str, model: str | None = None) -> Real | None:
    """What the reward `name` is made of, with the checkpoint `model` where its settings name one; None: not known, or a
    folder, which is read as it is."""
    if model is not None and (model.startswith("embedded:") or Path(model).expanduser().exists()):
        return None
    found = REAL.get(name)
    if found is None or model not in CLIPS or not found.architecture:
        return found
    return replace(found, architecture=CLIPS[model])


class Words:
    """Stands for a tokenizer: as many tokens as are asked for."""

    def __call__(self, texts: list[str], *, max_length: int = 32, **_: Any) -> Any:
        from transformers import BatchEncoding

        ids = torch.full((len(texts), max_length), 7)
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def add_tokens(self, *_: Any, **__: Any) -> None:
        """There is no vocabulary."""


@contextmanager
def without_checkpoints(real: Real) -> Iterator[None]:
    """Networks are made from their architecture where a checkpoint would be read; on the meta device too."""
    from transformers import CLIPConfig, Dinov2Config, Dinov2Model

    from rewards._clip import HFClip

    def network(kind: Any, model: str, **_: Any) -> Any:
        if kind.__name__ == "AutoModel":
            return Dinov2Model(Dinov2Config(**real.architecture))
        return _with_scale(kind(kind.config_class(**real.architecture)))

    def head(*_: Any) -> list[tuple[Tensor, Tensor]]:
        size = real.architecture.get("projection_dim") or real.architecture["vision_config"]["hidden_size"]
        return [(torch.randn(b, a) / a**0.5, torch.zeros(b)) for a, b in pairwise([size, 1024, 128, 64, 16, 1])]

    stand_ins: dict[str, Any] = {
        "load_hf": network,
        "load_tokenizer": lambda model: Words(),
        "hf_preprocess": lambda *_: real.preprocess,
        "hf_config": lambda model: {},
        "read_head": head,
        "read_state": lambda file: {},
        "read_module": lambda file: {},
        "load_strictly": lambda *_: None,
        "load_original": lambda *_, **__: None,
        "given_file": lambda *_: Path(),
        "hub_file": lambda *_: Path(),
        "url_file": lambda *_: Path(),
        "_open": lambda *_: torch.full((1, 3, 256, 256), 0.5),  # a reference image
    }
    if torch.get_default_device().type == "meta":  # open_clip moves what it makes, and there is nothing to move
        stand_ins["OpenClip"] = lambda _, dtype: HFClip("", dtype)
    with ExitStack() as stack:
        for name in ("_blip", "_clip", "_reference", "_siglip", *REAL):
            module = import_module(f"rewards.{name}")
            for attribute, stand_in in stand_ins.items():
                if hasattr(module, attribute):
                    stack.enter_context(_in_place(module, attribute, stand_in))
        stack.enter_context(_in_place(CLIPConfig, "from_pretrained", lambda *_, **__: CLIPConfig(**real.architecture)))
        yield


def _with_scale(network: Any) -> Any:
    """The temperature is a number that rewards read when they are built: it has a value on the meta device too."""
    if hasattr(network, "logit_scale") and network.logit_scale.is_meta:
        with torch.device("cpu"):
            network.logit_scale = torch.nn.Parameter(torch.tensor(4.6052))
    return network


@contextmanager
def _in_place(owner: Any, name: str, stand_in: Any) -> Iterator[None]:
    own = name in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
