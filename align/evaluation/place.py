"""Where an evaluation goes: by default into a folder of its own, so that none takes the place of another.

    evaluation/draft-shapes-on-shapes-report/plan.json      what the folder is of

The same command, or one with more prompts, arms or judges, goes on in the folder that is there. One that would leave
something out of its tables gets the next free number, and takes over the images that it shares with those beside it.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.evaluation.files import adapter_digest, choice, fingerprint
from align.evaluation.plan import Plan
from align.files.output import make_folder, write
from align.noise.stamps import stamps
from align.policy.mix import Located
from align.recipes import RECIPE
from rewards._numerals import counted

ROOT, FILE_NAME = Path("evaluation"), "plan.json"
DRAWN = ("model", "sampling", "seed", "precision", "images")
"""What every image depends on; other values make other images of the same names."""
LONGEST = 60  # characters of a folder's half


def described(plan: Plan) -> dict[str, Any]:
    """What an evaluation is of, JSON-able."""
    tree = plan.recipe.dump()
    digests = {adapter: adapter_digest(adapter) for adapter in plan.cast.adapters}

    def drawn(arm: Any) -> str:
        weights = [{digests[a]: w for a, w in (told or {}).items()} for told in (arm.adapters, arm.negative)]
        return fingerprint(weights, arm.noise, arm.count, *choice(arm, tree))

    return {
        "model": fingerprint(tree["model"], stamps(tree["model"])),
        "sampling": {**tree["sampling"], **({"files": files} if (files := stamps(tree["sampling"])) else {})},
        "seed": tree["train"]["seed"],
        "precision": tree["train"]["mixed_precision"],
        "images": plan.num_images,
        "against": {plan.cast.baseline.label: drawn(plan.cast.baseline)},
        "benchmark": plan.exam.name if plan.exam else None,
        "arms": {arm.label: drawn(arm) for arm in plan.cast.arms},
        "judges": {k: fingerprint(told := v.model_dump(mode="json"), stamps(told)) for k, v in plan.rewards.items()},
        "prompts": [item.prompt for item in plan.items],
    }


def chosen(plan: Plan, output: Path | None) -> Path:
    """The folder of an evaluation. Raises UserError where `output` holds images of other prompts or other sampling."""
    told = described(plan)
    if output is not None:
        output = output.expanduser()
        if (output / RECIPE).is_file():
            raise UserError(f"--output {output}: is a run's folder. Choose another, such as {output / 'evaluation'}.")
        there = _read(output)
        if there is not None and not _alike(there, told):
            what = " and ".join([key for key in DRAWN if there.get(key) != told[key]] or ["prompts"])
            raise UserError(
                f"--output {output}: holds an evaluation of {counted(len(there['prompts']), 'prompt')} with other "
                f"{what}, which this one would write over. Choose another folder, or leave --output out."
            )
        return output
    name = _name(plan)
    number = 1
    while True:
        path = ROOT / (name if number == 1 else f"{name}-{number}")
        there = _read(path)
        if (there is None and not (path.is_dir() and any(path.iterdir()))) or (there and _within(there, told)):
            return path
        number += 1


def begin(plan: Plan, output: Path) -> None:
    """Says in the folder what it is of, and links what evaluations beside it have drawn of the same."""
    told, output = described(plan), make_folder(output, "--output")
    if _read(output) is None and output.absolute().parent == ROOT.absolute():
        slugs = [arm.slug for arm in (plan.cast.baseline, *plan.cast.arms)]
        for beside in sorted(ROOT.iterdir()):
            there = _read(beside)
            if there is not None and _alike(there, told):
                for folder in (Path(kind) / slug for kind in ("images", "parts") for slug in slugs):
                    if (beside / folder).is_dir() and not (output / folder).exists():
                        shutil.copytree(beside / folder, output / folder, copy_function=_linked)
    write(output / FILE_NAME, json.dumps(told, indent=1) + "\n", "--output")


def _linked(source: str, target: str) -> None:
    """A second name of a file: whatever writes here puts a new file in its place, and leaves the other."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def _read(folder: Path) -> dict[str, Any] | None:
    """What a folder says that it is of, or None."""
    try:
        found = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("prompts"), list) else None


def _alike(there: dict[str, Any], told: dict[str, Any]) -> bool:
    """Whether two evaluations draw the same images where both draw one."""
    same = min(len(there["prompts"]), len(told["prompts"]))
    return all(there.get(k) == told[k] for k in DRAWN) and there["prompts"][:same] == told["prompts"][:same]


def _within(there: dict[str, Any], told: dict[str, Any]) -> bool:
    """Whether nothing of what is there would be missing from the new tables."""
    fewer = len(there["prompts"]) <= len(told["prompts"])
    same = all(there.get(key) == told[key] for key in ("against", "benchmark"))
    parts = all(dict(there.get(key) or {}).items() <= told[key].items() for key in ("arms", "judges"))
    return _alike(there, told) and fewer and same and parts


def _name(plan: Plan) -> str:
    """ "draft-shapes-on-shapes-report"."""
    found: dict[str, Located] = plan.cast.adapters
    names = dict.fromkeys(found[a].name for arm in plan.cast.arms for a in arm.adapters)
    names |= dict.fromkeys(arm.label for arm in plan.cast.arms if arm.noise)
    source = Path(plan.prompts.partition("=")[0])
    prompts = source.stem if source.suffix else str(source)
    return f"{_plain('+'.join(names) or plan.cast.baseline.label)}-on-{_plain(prompts)}"


def _plain(text: str) -> str:
    """Letters that every disk takes."""
    return re.sub(r"[^A-Za-z0-9_.+]+", "-", text).strip("-.")[:LONGEST] or "it"
