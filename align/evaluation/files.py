"""The folder of an evaluation: images, and beside them what was measured on each batch of prompts.

    images/ARM/0012-0.png           prompt 12, its first image
    parts/ARM/00000.safetensors     the prompts of one batch: scores (P, K), images averaged down (P, K, 3, 16, 16)

A part says under which settings it was made, so that the same command goes on after an interruption, and one with
another judge, more prompts or more arms makes only what is new. It is written last, whole or not at all.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from align.evaluation.arms import Arm
from align.evaluation.benchmarks import Item
from align.figures.picture import to_pil
from align.files.output import make_folder, write, write_picture
from align.noise.stamps import stamps
from align.policy import adapter_file

SCORE = "score:"
OF_THE_NOISE = ("rewards", "combine", "objective", "optim", "train")


class Chunk(NamedTuple):
    """A batch of prompts that are drawn together: always the same, however many processes there are."""

    start: int
    items: Sequence[Item]

    @property
    def indices(self) -> range:
        """The prompts' numbers."""
        return range(self.start, self.start + len(self.items))


@dataclass
class Part:
    """What is known of one arm on one chunk."""

    drawn: str
    """Fingerprint of all that the images depend on."""
    small: Tensor
    """(P, K, 3, h, w), h and w at most 16."""
    scores: dict[str, Tensor]
    """{label: (P, K)}."""
    judged: dict[str, str]
    """{label: fingerprint of the reward's settings}."""
    pixels: str = ""
    """Fingerprint of the images' files: a part does not speak of files that were replaced."""


def fingerprint(*told: Any) -> str:
    """Of anything that JSON can say."""
    return hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def adapter_digest(adapter: str) -> str:
    """Of an adapter's file, wherever it lies."""
    return hashlib.blake2b(adapter_file.find(adapter).read_bytes(), digest_size=8).hexdigest()


def choice(arm: Arm, tree: Mapping[str, Any]) -> list[Any]:
    """What the noise of an arm that chooses it depends on, beside model and sampling; of the others nothing."""
    if arm.noise is None:
        return []
    return [arm.noise, arm.count, [tree[block] for block in OF_THE_NOISE], *stamps(tree["rewards"])]


class Folder:
    """Reads and writes OUTPUT."""

    def __init__(self, path: Path):
        self.path = make_folder(path, "--output")

    def image(self, arm: Arm, index: int, number: int) -> Path:
        """The file of a prompt's image."""
        return self.path / "images" / arm.slug / f"{index:04d}-{number}.png"

    def save_images(self, arm: Arm, chunk: Chunk, images: Tensor) -> None:
        """images (P, K, 3, H, W) in [0, 1]."""
        self.image(arm, 0, 0).parent.mkdir(parents=True, exist_ok=True)
        for index, item, row in zip(chunk.indices, chunk.items, images, strict=True):
            for number, pixels in enumerate(row):
                said = PngInfo()
                said.add_text("prompt", item.prompt)
                said.add_text("diffalign", arm.label)
                write_picture(self.image(arm, index, number), to_pil(pixels), "--output", pnginfo=said)

    def images(self, arm: Arm, chunk: Chunk, count: int) -> Tensor:
        """The saved images of a chunk, (P, count, 3, H, W) in [0, 1]; to the last bit what was saved."""
        rows = [[_read(self.image(arm, i, k)) for k in range(count)] for i in chunk.indices]
        return torch.stack([torch.stack(row) for row in rows])

    def part(self, arm: Arm, chunk: Chunk, drawn: str, count: int) -> Part | None:
        """What is there of a chunk, if it was drawn as `drawn` says and its images are there."""
        path = self._part(arm, chunk)
        try:
            with safe_open(path, framework="pt") as file:
                said = json.loads(file.metadata()["part"])
                if said["drawn"] != drawn:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # safe_open is no mapping
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):  # not there, or damaged: it is made anew
            return None
        if said.get("pixels") != self.digest(arm, chunk, count):
            return None
        scores = {name.removeprefix(SCORE): t for name, t in tensors.items() if name.startswith(SCORE)}
        return Part(drawn, tensors["small"], scores, said["judged"], said["pixels"])

    def digest(self, arm: Arm, chunk: Chunk, count: int) -> str:
        """Of the files of a chunk's images; "" where one is not there."""
        found = hashlib.blake2b(digest_size=8)
        try:
            for index in chunk.indices:
                for number in range(count):
                    found.update(hashlib.blake2b(self.image(arm, index, number).read_bytes()).digest())
        except OSError:
            return ""
        return found.hexdigest()

    def forget(self, arm: Arm, num_prompts: int, num_images: int) -> None:
        """Takes away what an earlier evaluation of the arm has left beyond this one: who reads the folder counts."""
        for path in (self.path / "images" / arm.slug).glob("*.png"):
            named = re.fullmatch(r"(\d{4,})-(\d+)\.png", path.name)
            if named and (int(named[1]) >= num_prompts or int(named[2]) >= num_images):
                path.unlink()

    def save_part(self, arm: Arm, chunk: Chunk, part: Part) -> None:
        """Writes what is known of a chunk."""
        tensors = {"small": part.small.contiguous()}
        tensors |= {SCORE + label: values.contiguous() for label, values in part.scores.items()}
        said = {"part": json.dumps({"drawn": part.drawn, "judged": part.judged, "pixels": part.pixels})}
        write(self._part(arm, chunk), save(tensors, metadata=said), "--output")

    def note(self, arm: Arm, name: str, key: str) -> Any:
        """What `keep` has kept under this name, if it was under the same key."""
        path = self.path / "parts" / arm.slug / f"{name}.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found.get("value") if isinstance(found, dict) and found.get("key") == key else None

    def keep(self, arm: Arm, name: str, key: str, value: Any) -> None:
        """Keeps a value of an arm."""
        text = json.dumps({"key": key, "value": value})
        write(self.path / "parts" / arm.slug / f"{name}.json", text, "--output")

    def write(self, name: str, text: str) -> Path:
        """OUTPUT/name, whole or not at all."""
        return write(self.path / name, text, "--output")

    def _part(self, arm: Arm, chunk: Chunk) -> Path:
        return self.path / "parts" / arm.slug / f"{chunk.start:05d}.safetensors"


def _read(path: Path) -> Tensor:
    """(3, H, W) in [0, 1] of a PNG that was saved here."""
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def together(parts: Sequence[Part], labels: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
    """({label: scores (P, K)}, small images (P, K, 3, h, w)) of all chunks."""
    scores: Mapping[str, list[Tensor]] = {label: [part.scores[label] for part in parts] for label in labels}
    return {label: torch.cat(values) for label, values in scores.items()}, torch.cat([part.small for part in parts])
