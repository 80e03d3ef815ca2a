"""Images with captions as a batch source: prompts to sample, and the pictures they belong to, for denoising terms.

Every picture is decoded once before training: one that is damaged, and sizes that do not fit together, are found there.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor

from align.data._dataset_config import DatasetConfig
from align.data._datasets import brought
from align.data._pictures import content
from align.data._workplace import Workplace
from align.data.prompts import Prompts, PromptsConfig
from align.errors import UserError
from align.files.texts import Unreadable, json_lines, read_text
from align.models._identity import digest
from rewards._images import ImageError, read_pil, tensor
from rewards._numerals import counted

FILE_NAME = "captions.jsonl"
EXAMPLE = '{"file": "a.png", "caption": "..."}'


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
            picture = read_pil(file)
            if self.size is not None and picture.size != (self.size[1], self.size[0]):
                picture = ImageOps.fit(picture, (self.size[1], self.size[0]), Image.Resampling.LANCZOS)
            pictures.append(tensor(picture))
        return torch.stack(pictures)


class CaptionedConfig(DatasetConfig):
    """A folder of pictures with captions."""

    source = ("folder", "captions")
    name: Literal["captioned"] = "captioned"
    has_images: ClassVar[bool] = True
    folder: str
    """Holds the pictures and captions.jsonl, one {"file": "a.png", "caption": "..."} a line, as `align shapes render`
    writes them; or, with `columns`, an imagefolder, a table, webdataset files or a dataset on the Hub, which a dry run
    brings here too."""
    image_size: tuple[int, int] | None = Field(default=None)
    """Height and width that every picture is scaled and cropped to. Default: pictures are taken as they are, and have
    one size."""
    damaged: Literal["skip", "refuse"] = "skip"
    """A picture that cannot be read: left out with its caption and counted, or an error."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from self.asked()
        if self.columns is not None and not self.is_missing():
            return
        try:
            _rows(self.folder)
        except UserError as error:
            yield ".folder", str(error)


class Captioned:
    """Batches of `batch_size` rows, in the order that `prompts` would have."""

    Config = CaptionedConfig

    def __init__(self, config: CaptionedConfig, *, batch_size: int, seed: int):
        self.config, self.batch_size, self.seed = config, batch_size, seed
        self.size = config.image_size
        self._take(_rows(str(brought(config)) if config.columns is not None else config.folder))

    def _take(self, rows: list[tuple[Path, str]]) -> None:
        self.files, self.captions = [file for file, _ in rows], [caption for _, caption in rows]
        numbers = [str(number) for number in range(len(rows))]
        self.order = Prompts(PromptsConfig(prompts=numbers), batch_size=self.batch_size, seed=self.seed)

    def prepare(self, around: Workplace) -> None:
        """Reads every picture, leaves out or refuses those that cannot be, and says how many."""
        folder, kept, sizes, problems = self.config.folder, [], Counter[tuple[int, int]](), []
        rows = list(zip(self.files, self.captions, strict=True))
        for file, caption in around.progress("pictures read", rows):
            try:
                width, height = read_pil(file).size
            except ImageError as error:
                problems.append(str(error))
                continue
            kept.append((file, caption))
            sizes[self.size or (height, width)] += 1
        if problems and (self.config.damaged == "refuse" or not kept):
            raise UserError(
                f"data.folder={folder}: {len(problems)} of {counted(len(rows), 'picture')} cannot be read, such as "
                f"{problems[0]} Repair them, or set data.damaged=skip."
            )
        if len(sizes) > 1:
            told = ", ".join(f"{number} of {h} x {w}" for (h, w), number in sizes.most_common(4))
            raise UserError(
                f"data.folder={folder}: its pictures have {len(sizes)} sizes ({told}), and those of a batch need one. "
                "Set data.image_size to a height and width that all are brought to."
            )
        around.model.latent_shape(next(iter(sizes)))  # refuses what is no multiple of the codec's factor
        said = f", left out: {len(problems)} damaged, such as {problems[0]}" if problems else ""
        around.say(f"data: {counted(len(kept), 'picture')} with captions{said}")
        self._take(kept)

    def all_prompts(self) -> list[str]:
        """What is trained on."""
        return list(self.captions)

    def contents(self) -> dict[str, str]:
        """What a run depends on here, as digests by what they are of."""
        pictures = [content(file) for file in self.files]
        return {"data.folder, captions": digest(self.captions), "data.folder, pictures": digest(pictures)}

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
    rows = []
    try:
        for number, record in json_lines(read_text(file), str(file), EXAMPLE):
            told = [record.get(key) for key in ("file", "caption")] if isinstance(record, dict) else [None]
            if not all(isinstance(text, str) and text for text in told):
                raise UserError(f"{file}, line {number}: is no JSON object with file and caption. Write {EXAMPLE}.")
            name, caption = map(str, told)
            rows.append((file.parent / name, caption))
            if not rows[-1][0].is_file():
                raise UserError(f"{file}, line {number}: there is no {rows[-1][0]}. Put it there or remove the line.")
    except Unreadable as error:
        raise UserError(f"{error} Give a folder with pictures and {FILE_NAME}.") from None
    if not rows:
        raise UserError(f"{file} has no lines. Write one for each picture.")
    return rows
