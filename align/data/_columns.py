"""Which columns of somebody's table hold what: a map, and the maps of datasets that are known by name.

{our name: theirs}, theirs a column or a place in one (`file_path.0`). Pairs need `prompt` and either `winner` and
`loser`, or `image_0`, `image_1` with `label_0`, `label_1` (the larger is preferred, alike is a tie; `judged`: 0 where
nobody was asked), or `image` and `rank` (1 is the best) of several images of a prompt (`group`: which belong together).
Labels need `image`, `prompt`, `label`; captioned pictures `image` and `caption`; prompts `prompt`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from align.errors import UserError

Columns = Mapping[str, str]


class Known(NamedTuple):
    """A published dataset."""

    hub: str
    """Its Hub id."""
    columns: Columns
    inside: str = ""
    """Folder in which a downloaded copy keeps what its paths name."""
    file: str = ""
    """The table in a downloaded copy, where it is not parquet files of splits."""


_JUDGED = {"image_0": "jpg_0", "image_1": "jpg_1", "label_0": "label_0", "label_1": "label_1", "judged": "has_label"}
_HPD = {f"{ours}_{i}": f"{theirs}.{i}" for ours, theirs in (("image", "file_path"), ("label", "human_preference"))
        for i in (0, 1)}  # fmt: skip
KNOWN = {
    # Kirstain et al., arXiv 2305.01569
    "pickapic": Known("yuvalkirstain/pickapic_v2", {"prompt": "caption", **_JUDGED}),
    # Wu et al., arXiv 2306.09341
    "hpdv2": Known("ymhao/HPDv2", {"prompt": "prompt", **_HPD}, "train", "train.json"),
    # Ma et al., arXiv 2508.03789: path1 is the one that was preferred
    "hpdv3": Known("MizzenAI/HPDv3", {"prompt": "prompt", "winner": "path1", "loser": "path2"}, "images", "train.json"),
    # Xu et al., arXiv 2304.05977
    "imagerewarddb": Known(
        "zai-org/ImageRewardDB",
        {"prompt": "prompt", "image": "image_path", "rank": "rank", "group": "prompt_id"},
        "images",
        "metadata-train.parquet",
    ),
    "open_image_preferences": Known(
        "data-is-better-together/open-image-preferences-v1-binarized",
        {"prompt": "prompt", "winner": "chosen", "loser": "rejected"},
    ),
}
ALIASES = {"pickapic_v2": "pickapic", **{known.hub: name for name, known in KNOWN.items()}}
FORMS = {
    "pairs": (("prompt", "winner", "loser"), ("prompt", "image_0", "image_1", "label_0", "label_1"),
              ("prompt", "image", "rank")),
    "labels": (("prompt", "image", "label"),),
    "captions": (("image", "caption"),),
    "prompts": (("prompt",),),
}  # fmt: skip
"""What each kind of data needs; one of the forms."""
OPTIONAL = ("judged", "group")
EXAMPLE = {"prompt": "caption", "winner": "jpg_0", "loser": "jpg_1"}
IMAGES = ("winner", "loser", "image_0", "image_1", "image")


def known(source: str) -> Known | None:
    """The published dataset that is called so, or has this Hub id."""
    return KNOWN.get(ALIASES.get(source, source))


def form(kind: str, columns: Columns) -> tuple[str, ...] | None:
    """The first form of `kind` that these columns fill."""
    return next((names for names in FORMS[kind] if set(names) <= set(columns)), None)


def problem(kind: str, columns: Columns) -> str | None:
    """What is wrong with a map for this kind of data."""
    names = {name for each in FORMS[kind] for name in each} | set(OPTIONAL)
    if unknown := sorted(set(columns) - names):
        return f"{unknown[0]} is nothing that {kind} have. Known here: {', '.join(sorted(names))}."
    if form(kind, columns) is None:
        needs = ", or ".join(", ".join(each) for each in FORMS[kind])
        return f"names {', '.join(sorted(columns)) or 'nothing'}, and {kind} need {needs}. Add what is missing."
    return None


def called(row: Iterable[str], names: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """{our name: the row's}: the first of its names that is there, else ours."""
    there = [*row]
    return {ours: next((name for name in known if name in there), ours) for ours, known in names.items()}


def needed(columns: Columns, there: Iterable[str], where: str, *, may: Iterable[str] = OPTIONAL) -> list[str]:
    """The columns to read; a UserError where one is not there."""
    names, wanted = list(there), {ours: theirs.partition(".")[0] for ours, theirs in columns.items()}
    if missing := {ours: theirs for ours, theirs in wanted.items() if theirs not in names and ours not in may}:
        others = [name for name in names if name not in wanted.values()]
        example = EXAMPLE if "winner" in columns else {**columns, **dict.fromkeys(missing, "COLUMN")}
        guess = {**columns, **dict(zip(missing, others, strict=False))} if len(others) >= len(missing) else example
        told = ", ".join(f"{ours}: {theirs}" for ours, theirs in guess.items())
        raise UserError(
            f"{where}: it has no column {', '.join(sorted(set(missing.values())))} (it has "
            f"{', '.join(sorted(names))}). Say what yours are called, such as 'data.columns={{{told}}}'."
        )
    return sorted({theirs for theirs in wanted.values() if theirs in names})


def cell(row: Any, place: str) -> Any:
    """The value at `a`, or `a.0`; None where there is none."""
    for key in place.split("."):
        if isinstance(row, Mapping):
            row = row.get(key)
        elif isinstance(row, list | tuple) and key.isdigit() and int(key) < len(row):
            row = row[int(key)]
        else:
            return None
    return row
