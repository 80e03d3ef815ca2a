"""How to build, on tiny weights, the rewards whose default settings need a download; the others need no entry."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from reward_toys import PROMPTS, smooth
from tiny_checkpoints import TINY_SIZES, head

USER_FILE = """
import torch

def warmth(images, prompts):
    return (images[:, 0] - images[:, 2]).mean((1, 2))

def warm(images, prompts):
    return (images[:, 0] > images[:, 2]).float().mean((1, 2))
"""

DTYPES = ("float32", "bfloat16")


class Tiny:
    """The session's tiny checkpoints, as settings."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path):
        self.fixture: Callable[[str], Any] = request.getfixturevalue
        self.folder = folder

    def clip(self) -> Iterator[dict]:
        hf, oc = str(self.fixture("tiny_clip")), f"open_clip:{self.fixture('tiny_open_clip')}"
        yield from ({"model": model, "dtype": dtype} for model in (hf, oc) for dtype in DTYPES)
        yield {"model": hf, "form": "logit", "prefix": "it is "}
        yield {"model": hf, "form": "clipscore"}

    def pickscore(self) -> Iterator[dict]:
        model = str(self.fixture("tiny_clip"))
        yield from (
            {"model": model, "dtype": dtype, "form": form}
            for dtype, form in zip(DTYPES, ("logit", "unit"), strict=True)
        )

    def hpsv2(self) -> Iterator[dict]:
        model, weights = self.fixture("tiny_open_clip").split("/", 1)
        for version, preprocess, dtype in (("2.0", "hpsv2", "float32"), ("2.1", "alignprop", "bfloat16")):
            yield {"model": model, "weights": weights, "version": version, "preprocess": preprocess, "dtype": dtype}

    def aesthetic(self) -> Iterator[dict]:
        shared = {"model": str(self.fixture("tiny_clip")), "head": str(self.fixture("tiny_head"))}
        for preprocess, dtype in (("pil", "float32"), ("alignprop", "float32"), ("pil", "bfloat16")):
            yield shared | {"preprocess": preprocess, "dtype": dtype}

    def aesthetic_v25(self) -> Iterator[dict]:
        file = head(self.folder / "head.pth", "scoring_head", 32, (0, 2, 4, 6, 8), seed=5)
        yield from ({"model": str(self.fixture("tiny_siglips")[1]), "head": str(file), "dtype": d} for d in DTYPES)

    def siglip(self) -> Iterator[dict]:
        for (version, folder), form in zip(self.fixture("tiny_siglips").items(), ("logit", "cosine"), strict=True):
            yield {"model": str(folder), "form": form, "dtype": DTYPES[version - 1]}
        yield from ({"model": str(self.fixture("tiny_naflex")), "dtype": dtype} for dtype in DTYPES)

    def imagereward(self, name: str = "imagereward") -> Iterator[dict]:
        files = self.fixture("tiny_blip_files")
        shared = {"tokenizer": str(files["tokenizer"]), "sizes": TINY_SIZES, "weights": str(files[name])}
        yield from (shared | {"dtype": dtype} for dtype in DTYPES)

    def cyclereward(self) -> Iterator[dict]:
        yield from self.imagereward("cyclereward")

    def blip(self) -> Iterator[dict]:
        for settings, form in zip(self.imagereward("blip"), ("itc", "itm_logit"), strict=True):
            yield settings | {"form": form}

    def mps(self) -> Iterator[dict]:
        shared = {
            "model": str(self.fixture("tiny_clip")),
            "weights": str(self.fixture("tiny_mps")[0]),
            "layers": 2,
            "heads": 2,
        }
        yield from (shared | {"dtype": dtype} for dtype in DTYPES)

    def jpeg(self) -> Iterator[dict]:
        yield from ({"form": form} for form in ("rate", "distance", "exact"))
        yield {"form": "rate", "goal": "incompressible", "quality": 50}

    def symmetry(self) -> Iterator[dict]:
        yield from ({"axis": axis} for axis in ("horizontal", "vertical", "both"))

    def lpips(self) -> Iterator[dict]:
        backbone, heads = self.fixture("tiny_lpips")
        yield {"reference": self._picture(), "backbone": str(backbone), "heads": str(heads)}

    def dino(self) -> Iterator[dict]:
        yield from ({"reference": self._picture(), "model": str(self.fixture("tiny_dino")), "dtype": d} for d in DTYPES)

    def python(self) -> Iterator[dict]:
        (self.folder / "mine.py").write_text(USER_FILE)
        yield {"function": f"{self.folder / 'mine.py'}:warmth"}
        yield {"function": f"{self.folder / 'mine.py'}:warm", "differentiable": False}

    def detector(self) -> Iterator[dict]:
        shared = {"colours": str(self.fixture("tiny_clip")), "threshold": 0.5}
        for kind, form in (("owlvit", "log"), ("owlv2", "verdict"), ("grounding-dino", "soft")):
            yield shared | {"model": str(self.fixture("tiny_detectors")[kind]), "form": form}

    def latent(self) -> Iterator[dict]:
        yield {"model": "embedded:shapes-latent"}

    def vqascore(self) -> Iterator[dict]:
        model = str(self.fixture("tiny_qwen"))
        yield {"model": model, "form": "log_odds", "dtype": "float32"}

    def unifiedreward(self) -> Iterator[dict]:
        yield {"model": str(self.fixture("tiny_qwen")), "dtype": "float32"}

    def hpsv3(self) -> Iterator[dict]:
        folder = self.fixture("tiny_qwen")
        shared = {"model": str(folder), "weights": str(folder / "HPSv3.safetensors"), "head": 16, "area": 1024}
        yield shared | {"instruction": str(folder / "instruction.txt"), "dtype": "float32"}

    def http(self) -> Iterator[dict]:
        url = self.fixture("judge_url")
        yield from ({"url": url, "model": "m", "answer": how, "cache": None} for how in ("yes", "number"))

    def _picture(self) -> str:
        smooth(40, 52).transpose(0).save(self.folder / "reference.png")
        return str(self.folder / "reference.png")


def settings(name: str, request: pytest.FixtureRequest, folder: Path) -> list[dict]:
    """Settings under which the reward `name` is tried; the default ones where nothing else is said."""
    given = getattr(Tiny(request, folder), name, None)
    return [{}] if given is None else list(given())


def asked(reward: Any) -> list[str]:
    """Three prompts that a reward understands."""
    return [f'a sign "{prompt}"' for prompt in PROMPTS] if reward.config.name == "ocr" else PROMPTS
