"""Labelled pictures from a model and a judge: an image is good where its score reaches a threshold."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from align.data._labels import FILE_NAME
from align.data._make import JudgedConfig
from align.errors import UserError


class LabelsMakeConfig(JudgedConfig):
    """What the labels are made of."""

    noun: ClassVar[str] = "labels"
    file_name: ClassVar[str] = FILE_NAME
    images: ClassVar[tuple[str, ...]] = ("image",)

    threshold: float | Literal["median"] = "median"
    """Least score of a good image; median: that of all images' scores."""
    margin: float = Field(default=0.0, ge=0)
    """Leave out images whose scores are closer to the threshold than this."""

    def records(self, totals: Tensor, seed: int, prompt: int) -> Iterator[dict[str, Any]]:
        for number, score in enumerate(totals.tolist()):
            yield {"image": number, "score": score}

    def table(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        if not records:
            return []
        limit = median(r["score"] for r in records) if isinstance(self.threshold, str) else self.threshold
        kept = [record for record in records if abs(record["score"] - limit) >= self.margin]
        return [record | {"label": int(record["score"] >= limit)} for record in kept]

    def why_empty(self) -> str:
        return f"every score is closer than margin={self.margin} to the threshold. Lower data.make.margin."


def as_labels(data: Mapping[str, Any], threshold: float | str) -> dict[str, Any]:
    """The block `data` of a recipe that makes pairs or labels, as one that makes labels by this threshold; pairs' go
    into a folder beside theirs."""
    make, pairs = data.get("make"), data.get("pairs")
    if make is None:
        raise UserError(
            "data.make is not set: there is nothing to make labels of. Set `make: {prompts: ..., rewards: ...}`."
        )
    kept = {key: value for key, value in make.items() if key in JudgedConfig.model_fields}
    place = data["labels"] if pairs is None else f"{str(pairs).rstrip('/')}-labels"
    return {"name": "labels", "labels": place, "make": {**kept, "threshold": threshold}}
