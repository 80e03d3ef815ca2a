"""Images with captions as a batch source: prompts to sample, and the pictures they belong to, for denoising terms."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor

from align.data.prompts import Prompts, PromptsConfig
from align.errors import UserError
from align.registry import ComponentConfig

FILE_NAME = "captions.jsonl"


class CaptionedBatch(NamedTuple):
    """Rows of one update, as a PromptBatch, and each row's picture."""

    prompts: tuple[str, ...]
    indices: tuple[int, ...]
    step: int
    files: tuple[Path, ...]
    size: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> "CaptionedBatch":  # type: ignore[override]  # rows, not fields
        return CaptionedBatch(self.prompts[rows], self.indices[rows], self.step, self.files[rows], self.size)

    def images(self) -> Tensor:
        """(B, 3, H, W) in [0, 1]."""
        pictures = []
        for file in self.files:
            with Image.open(file) as opened:
                picture = opened.convert("RGB")
            if self.size is not None and picture.size != (self.size[1], self.size[0]):
                picture = ImageOps.fit(picture, (self.size[1], self.size[0]), Image.Resampling.LANCZOS)
            pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255)
        return torch.stack(pictures)


class CaptionedConfig(ComponentConfig):
    """A folder of pictures with captions."""

    name: Literal["captioned"] = "captioned"
    has_images: ClassVar[bool] = True
    folder: str
    """Holds the pictures and captions.jsonl, one {"file": "a.png", "caption": "..."} a line, as `align shapes render`
    writes them."""
    image_size: tuple[int, int] | None = Field(default=None)
    """Height and width that every picture is scaled and cropped to. Default: pictures are taken as they are."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        try:
            _rows(self.folder)
        except UserError as error:
            yield ".folder", str(error)


class Captioned:
    """Batches of `batch_size` rows, in the order that `prompts` would have."""

    Config = CaptionedConfig

    def __init__(self, config: CaptionedConfig, *, batch_size: int, seed: int):
        rows = _rows(config.folder)
        self.files, self.captions = [file for file, _ in rows], [caption for _, caption in rows]
        numbers = [str(number) for number in range(len(rows))]
        self.order = Prompts(PromptsConfig(prompts=numbers), batch_size=batch_size, seed=seed)
        self.size = config.image_size

    def __iter__(self) -> Iterator[CaptionedBatch]:
        for batch in self.order:
            chosen = [int(number) for number in batch.prompts]
            captions = tuple(self.captions[i] for i in chosen)
            yield CaptionedBatch(captions, batch.indices, batch.step, tuple(self.files[i] for i in chosen), self.size)

    def state_dict(self) -> dict[str, Any]:
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order.load_state_dict(state)


def _rows(folder: str) -> list[tuple[Path, str]]:
    """(picture, caption) of each line."""
    file = Path(folder).expanduser() / FILE_NAME
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}). Give a folder with pictures and it.") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            rows.append((file.parent / str(record["file"]), str(record["caption"])))
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f'{file}, line {number}: is no JSON object with file and caption. Write {{"file": "a.png", '
                '"caption": "..."}.'
            ) from None
        if not rows[-1][0].is_file():
            raise UserError(f"{file}, line {number}: there is no {rows[-1][0]}. Put it there or remove the line.")
    if not rows:
        raise UserError(f"{file} has no lines. Write one for each picture.")
    return rows
