"""`restore`: the shipped checkpoints as the results of the stages, fp32, so that any single stage can be made again.

What WORK already holds is left alone. Stages sd and flow are kept in scripts/pretrain/base and base_flow; stage web is
shapes-sd, and flow_web shapes-flow; the base's text tower stands for the warmed-up one, and shapes-clip, which is tuned
already, for stage clip's.
"""

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel

from align.shapes import assembled, embedded
from scripts.pretrain import flow
from scripts.pretrain.common import CHECKPOINTS, WORK

BASE = Path(__file__).parent / "base"
BASE_FLOW = Path(__file__).parent / "base_flow"


def main() -> None:
    """Fill WORK/out."""
    out = WORK / "out"
    todo = {
        "vae": lambda to: AutoencoderKL.from_pretrained(CHECKPOINTS / "shapes-sd" / "vae").float().save_pretrained(to),
        "tokenizer": lambda to: shutil.copytree(CHECKPOINTS / "shapes-sd" / "tokenizer", to),
        "text": lambda to: CLIPTextModel.from_pretrained(BASE / "text_encoder").float().save_pretrained(to),
        "clip": lambda to: _clip("shapes-clip", to),
        "tune": lambda to: _clip("shapes-clip", to),
        "pick": lambda to: _clip("shapes-pick", to),
        "sd": lambda to: _pipeline(BASE, to),
        "web": lambda to: _pipeline(CHECKPOINTS / "shapes-sd", to),
        "turbo": _turbo,
        "flow": _flow,
        "flow_web": lambda to: _pipeline(embedded.resolve("embedded:shapes-flow"), to),
    }
    for name, work in todo.items():
        if not (out / name).exists():
            out.mkdir(parents=True, exist_ok=True)
            work(out / name)
            print("restored", name)


def _clip(name: str, to) -> None:
    CLIPModel.from_pretrained(CHECKPOINTS / name).float().save_pretrained(to)
    shutil.copy(CHECKPOINTS / name / "preprocessor_config.json", to)


def _turbo(to) -> None:
    to.mkdir()
    lora = load_file(CHECKPOINTS / "shapes-turbo" / assembled.ADAPTER)
    save_file({k: v.float() for k, v in lora.items()}, to / assembled.ADAPTER, metadata={"format": "pt"})


def _flow(to) -> None:
    """The transformer and the tower are kept; the rest is the other stages'."""
    flow.pipeline(*flow.kept(BASE_FLOW)).to(torch.float32).save_pretrained(to)


def _pipeline(folder: Path, to: Path) -> None:
    if to.name == "flow_web":
        pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    else:
        pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.to(torch.float32).save_pretrained(to)
