"""Pictures made ready once: the autoencoder's posterior of each and the prompts' embeddings, on disk.

    FOLDER/images-DIGEST/   a row a pair or a picture, keyed by its images' contents: of each side (winner and loser, or
                            image) mean and logvar (F, C, h, w), F = 2 with the mirrored ones, and size ids (sides, 6)
    FOLDER/text-DIGEST/     a row a prompt: the tensors of its Cond, one row each
    FOLDER/contents.json    {file: [size, mtime, ctime, hash]}: what was hashed and has not changed is not read again

DIGEST is of everything else that the numbers depend on (align/models/_identity.py): weights, configs, settings and code
of what encodes, the views and the code that reads images, the seed where crops are random.
Posteriors are kept, not samples: the noise of the autoencoder is drawn anew whenever a row is used. A row that cannot
be used (an image missing or damaged, a second size) is counted by its reason here, before the first update.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from align.data import _views
from align.data._pictures import Picture, status
from align.data._store import TensorStore
from align.data._views import View, ViewConfig, buckets, nearest, offsets, pixels, view
from align.data._workplace import Workplace
from align.models import _identity
from align.models._identity import digest
from align.processes import gather_object
from rewards import _images
from samplers import TensorCond

CHUNK = 32  # rows encoded and written together
LONGEST = 16  # side over side: a line, scaled until it covers its bucket, would fill the memory
T = TypeVar("T")


class Row(Protocol):
    """What is cached: a pair, or one labelled picture."""

    @property
    def prompt(self) -> str: ...

    @property
    def pictures(self) -> tuple[Picture, ...]: ...


class Unusable(Exception):
    """Why a row cannot be used; the first argument is the kind of reason, the second which image."""


class PictureCache:
    """The rows in `folder`, each of as many images as there are `sides`; `fill` makes what is missing, with all
    processes together."""

    def __init__(
        self, folder: Path, views: ViewConfig, *, sides: tuple[str, ...], two_sizes: str = "fit", around: Workplace
    ):
        self.folder, self.views, self.two_sizes, self.around = folder, views, two_sizes, around
        self.names = tuple(f"{side}_{what}" for side in sides for what in ("mean", "logvar"))
        model = around.model
        self.sizes = buckets(views, views.image_size or model.image_size)
        for size in self.sizes:
            model.latent_shape(size)  # refuses what is no multiple of the codec's factor
        crops = around.seed if views.crop == "random" else None
        said = [_identity.codec(model.codec), _identity.files(_views, _images)]
        said += [views.model_dump(mode="json"), self.sizes, two_sizes, crops]
        self.images = TensorStore(folder / f"images-{digest(said)}")
        self._stores: dict[Path, TensorStore] = {}
        self._network: str | None = None
        self.stamps: list[tuple[str, ...]] = []
        """Of the last rows' images: what identifies their contents; "" where one is not there."""
        self.text = TensorStore(folder / f"text-{_identity.text(model.text)}")

    def fill(self, rows: Sequence[Row]) -> tuple[list[str], Counter[str], list[str]]:
        """(each row's key, "" where it cannot be used; how many cannot, by reason; examples of what is wrong)."""
        around = self.around
        stores = [self.images, self.text]
        if around.accelerator.is_main_process:
            for store in stores:
                store.scan(verify=True, say=around.say)
            keys = self._keys(rows)
        around.accelerator.wait_for_everyone()
        if not around.accelerator.is_main_process:
            for store in stores:
                store.scan()
            keys = self._keys(rows)
        refused = self._encode_images(rows, keys)
        self._encode_text(sorted({row.prompt for row in rows} | {""}))
        around.accelerator.wait_for_everyone()
        for store in stores:
            store.scan()
        for i in (i for i, key in enumerate(keys) if not key):
            absent = next(picture for picture in rows[i].pictures if not picture.stamp())
            refused[i] = "missing", str(absent)
        everyone = gather_object([refused]) if around.accelerator.num_processes > 1 else [refused]
        merged = {i: reason for part in everyone for i, reason in part.items()}
        usable = ["" if i in merged else key for i, key in enumerate(keys)]
        examples = [f"{what}: {kind}" for _, (kind, what) in sorted(merged.items())[:3]]
        return usable, Counter(kind for kind, _ in merged.values()), examples

    def store(self, name: str, settings: Any) -> TensorStore:
        """A store beside the latents for what the base network makes of them with these settings."""
        if self._network is None:
            self._network = _identity.network(self.around.model, self.around.policy.autocast())
        stores = self.images.folder.name, self.text.folder.name
        folder = self.folder / f"{name}-{digest([*stores, self._network, settings])}"
        if folder not in self._stores:
            self._stores[folder] = TensorStore(folder)
            self._stores[folder].scan(verify=self.around.accelerator.is_main_process, say=self.around.say)
        return self._stores[folder]

    def bucket(self, key: str) -> str:
        """The latent size of a row, as text."""
        return "x".join(map(str, self.images.shape(key, self.names[0])[-2:]))

    def cond(self, prompts: Sequence[str]) -> TensorCond:
        """Embeddings of prompts, one row each, on the model's device."""
        rows = [self.text.read(digest([prompt])) for prompt in prompts]
        cond = TensorCond({name: torch.cat([row[name] for row in rows]) for name in rows[0]})
        return cond.to(self.around.accelerator.device)

    def _keys(self, rows: Sequence[Row]) -> list[str]:
        """A key a row, of its images' contents; "" where an image is missing."""
        contents = Contents(self.folder / "contents.json")
        self.stamps = [tuple(contents.of(picture) for picture in row.pictures) for row in rows]
        if self.around.accelerator.is_main_process:
            contents.save()
        return [digest(stamps) if all(stamps) else "" for stamps in self.stamps]

    def _encode_images(self, rows: Sequence[Row], keys: Sequence[str]) -> dict[int, tuple[str, str]]:
        accelerator = self.around.accelerator
        rank, size = accelerator.process_index, accelerator.num_processes
        firsts = {key: i for i, key in reversed(list(enumerate(keys))) if key and key not in self.images}
        mine = sorted(firsts.values())[rank::size]
        refused: dict[int, tuple[str, str]] = {}
        for chunk in self.around.progress("images encoded", _chunks(mine)):
            loaded: dict[str, tuple[list[View], list[Tensor]]] = {}
            for i in chunk:
                try:
                    loaded[keys[i]] = self._load(rows[i], keys[i])
                except Unusable as reason:
                    refused[i] = reason.args
            self.images.write(self._posteriors(loaded))
        return {i: refused[firsts[key]] for i, key in enumerate(keys) if firsts.get(key) in refused}

    def _load(self, row: Row, key: str) -> tuple[list[View], list[Tensor]]:
        images = []
        for picture in row.pictures:
            try:
                images.append(_images.read_pil(picture.read(), str(picture)))
            except _images.ImageError as error:
                raise Unusable("damaged", str(error)) from None
            except (OSError, ValueError) as error:
                raise Unusable("damaged", f"{picture} ({error})") from None
            if max(images[-1].size) > LONGEST * min(images[-1].size):
                raise Unusable("too long", f"{picture} is {images[-1].height} x {images[-1].width}")
        sizes = [(image.height, image.width) for image in images]
        if len(set(sizes)) > 1 and self.two_sizes != "fit":
            told = (f"{picture} {size}" for picture, size in zip(row.pictures, sizes, strict=True))
            raise Unusable("two sizes", ", ".join(told))
        bucket, u = nearest(sizes[0], self.sizes), offsets(self.views, self.around.seed, key)
        places = [view(size, bucket, u) for size in sizes]
        return places, [pixels(image, place) for image, place in zip(images, places, strict=True)]

    @torch.no_grad()
    def _posteriors(self, loaded: dict[str, tuple[list[View], list[Tensor]]]) -> dict[str, dict[str, Tensor]]:
        rows: dict[str, dict[str, Tensor]] = {}
        flips = 2 if self.views.flip else 1
        for key, (places, images) in loaded.items():  # a row at a time: none depends on those encoded beside it
            seen = torch.stack(images)
            seen = torch.cat([seen, seen.flip(-1)]) if self.views.flip else seen
            found = self.around.model.codec.encode(seen.to(self.around.accelerator.device))
            mean, logvar = (q.view(flips, len(images), *q.shape[1:]) for q in (found.mean, found.logvar))
            values = [q[:, side] for side in range(len(images)) for q in (mean, logvar)]
            rows[key] = dict(zip(self.names, values, strict=True)) | {
                "ids": torch.stack([place.ids for place in places])
            }
        return rows

    def _encode_text(self, prompts: Sequence[str]) -> None:
        accelerator = self.around.accelerator
        missing = [p for p in prompts if digest([p]) not in self.text]
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        for chunk in self.around.progress("prompts encoded", _chunks(mine, 8 * CHUNK)):
            self.text.write({digest([p]): self.around.model.text.encode([p]).tensors for p in chunk})


class Contents:
    """Hashes of files, remembered by size and times of change; a parquet file is hashed as a whole."""

    def __init__(self, file: Path):
        self.file = file
        try:
            self.known: dict[str, list[Any]] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.known = {}

    def of(self, picture: Picture) -> str:
        """The stamp of a picture's content; "" if it is not there."""
        try:
            now = status(picture.path)
        except OSError:
            return ""
        known = self.known.get(str(picture.path))
        if known is None or known[:-1] != now:
            whole = Picture(picture.path).stamp()
            known = self.known[str(picture.path)] = [*now, whole]
        return known[-1] if picture.row is None or not known[-1] else f"{known[-1]}:{picture.row}:{picture.column}"

    def save(self) -> None:
        """Where the folder can be written; what is not remembered is hashed again."""
        temporary = self.file.with_suffix(".writing")
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self.known), encoding="utf-8")
            os.replace(temporary, self.file)


def _chunks(items: list[T], size: int = CHUNK) -> list[list[T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
