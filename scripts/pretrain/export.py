"""Stage export: the trained models in fp16 safetensors and stock folders, with a README of figures and checksums."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor

from align.shapes import assembled
from scripts.pretrain import detector, eye, flow, flow_web, pick, sd, text, tune, turbo, web
from scripts.pretrain.common import CHECKPOINTS, WORK

_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


def _tokenizer(folder: Path) -> None:
    """The layout that every version of transformers reads."""
    for path in folder.iterdir() if folder.exists() else ():
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER:
        shutil.copy(WORK / "out" / "tokenizer" / name, folder / name)


def _pipeline(name: str, pipe) -> None:
    folder = CHECKPOINTS / name
    shutil.rmtree(folder, ignore_errors=True)
    pipe.to(torch.float16).save_pretrained(folder)
    for path in folder.rglob("*.json"):  # where it was loaded from is nobody's business
        settings = json.loads(path.read_text())
        if settings.pop("_name_or_path", None):
            path.write_text(json.dumps(settings, indent=2) + "\n")
    for part in ("tokenizer", "tokenizer_2"):
        if (folder / part).exists():
            _tokenizer(folder / part)


def _clip(name: str, network) -> None:
    folder = CHECKPOINTS / name
    shutil.rmtree(folder, ignore_errors=True)
    network.half().save_pretrained(folder)
    CLIPImageProcessor.from_pretrained(WORK / "out" / "clip").save_pretrained(folder)
    for file in _TOKENIZER:
        shutil.copy(WORK / "out" / "tokenizer" / file, folder / file)


def _adapter(name: str, base: str) -> None:
    """A LoRA, the checkpoint that it is for, and its scheduler: merged where it is first used."""
    folder = CHECKPOINTS / name
    shutil.rmtree(folder, ignore_errors=True)
    turbo.load().scheduler.save_pretrained(folder / "scheduler")
    half = {k: v.half() for k, v in load_file(WORK / "out" / "turbo" / assembled.ADAPTER).items()}
    save_file(half, folder / assembled.ADAPTER, metadata={"format": "pt"})
    (folder / assembled.BASE).write_text(json.dumps({"base": base}) + "\n")


def readme() -> str:
    """How each checkpoint was made, what it reaches, and its files' checksums; stages that were made elsewhere keep
    their rows."""
    file = CHECKPOINTS / "README.md"
    old = file.read_text() if file.exists() else ""
    rows = {m[1]: m[0] for m in re.finditer(r"^\| (\w+) \| `python .*$", old, re.MULTILINE)}
    for stage, figures in json.loads((WORK / "figures.json").read_text()).items():
        rows[stage] = f"| {stage} | `python scripts/pretrain_shapes.py {stage}` | `{json.dumps(figures)}` |"
    lines = [
        "# The embedded checkpoints",
        "",
        "Made by the stages of `python scripts/pretrain_shapes.py` (seed 0) from nothing but this package, in fp16.",
        "Figures are as the stages printed them when the files were made (seconds on 2 CPU cores, shared).",
        "Updates and data by default may have changed since; clip, tune and pick saw the base before.",
        "",
        "| stage | command | figures |",
        "|---|---|---|",
    ]
    lines += rows.values()
    lines += ["", "| file | bytes | sha256 |", "|---|---|---|"]
    for path in sorted(CHECKPOINTS.rglob("*.safetensors")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"| {path.relative_to(CHECKPOINTS)} | {path.stat().st_size} | {digest} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Export whatever stages are finished."""
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    text.load()
    if (WORK / "out" / "turbo").exists():
        _adapter("shapes-turbo", "shapes-sd")
    for name, capable, left in (("sd", sd, web), ("flow", flow, flow_web)):  # as the web left it, where it has
        web_stage = left.__name__.rpartition(".")[2]
        if (WORK / "out" / name).exists():
            _pipeline(f"shapes-{name}", (left if (WORK / "out" / web_stage).exists() else capable).load())
    for name, stage in {"tune": tune, "pick": pick}.items():
        if (WORK / "out" / name).exists():
            _clip("shapes-clip" if name == "tune" else "shapes-pick", stage.load())
    for name, reader in {"eye": eye, "detector": detector}.items():
        if (WORK / "out" / name).exists():
            reader.load().save(CHECKPOINTS / f"shapes-{name}")
    assembled.share(CHECKPOINTS)
    (CHECKPOINTS / "README.md").write_text(readme())
    total = sum(p.stat().st_size for p in CHECKPOINTS.rglob("*") if p.is_file())
    print(f"{CHECKPOINTS.name}: {total / 1e6:.1f} MB")
