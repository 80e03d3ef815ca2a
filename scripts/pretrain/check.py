"""`check`: every figure that the embedded models are held to, measured on the exported checkpoints.

Rates come with 95 % intervals over distinct captions. The table is printed and written to docs/lab/shapes-figures.md.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from align.figures.statistics import interval
from align.models._shared_tokens import accept_last_count
from align.shapes import eye
from align.shapes.captions import SKILLS, alterations, parse, requirements, say
from align.shapes.compose import compose
from align.shapes.embedded import PREFIX, resolve
from align.shapes.judge import judge, judge_reading, read
from align.shapes.prompts import prompts
from align.shapes.scene import render_batch
from align.shapes.taste import gold
from scripts.pretrain import clip, flow
from scripts.pretrain.common import CHECKPOINTS, WORK, draw, generator
from scripts.pretrain.restore import BASE, BASE_FLOW

PROMPTS, SEED = 1024, 2026
STEPS = {"shapes-sd": (20, 2.0), "shapes-turbo": (2, 1.0), "shapes-flow": (20, 2.0)}  # steps, guidance
OUTPUT = Path(__file__).parents[2] / "docs" / "lab" / "shapes-figures.md"


def within(values: Sequence[float], captions: list[str]) -> str:
    """Mean of values with its 95 % interval over the distinct captions, in per cent."""
    found = interval(torch.tensor(values, dtype=torch.float64), captions)
    low, high = (100 * min(max(edge, 0.0), 1.0) for edge in found.edges)  # shares, of which Student's t knows nothing
    return f"{100 * found.mean:.1f} [{low:.1f}, {high:.1f}]"


def row(name: str, values: Sequence[float], captions: list[str]) -> str:
    """One line of a table: values of captions, overall and per skill."""
    by_skill, asked = split(values, captions), split(captions, captions)
    cells = [within(values, captions), *(within(by_skill[s], asked[s]) for s in SKILLS)]
    return f"| {name} | " + " | ".join(cells) + " |"


def split(values: Sequence[Any], captions: list[str]) -> dict[str, list]:
    """Values by the skill of their caption."""
    return {s: [v for v, c in zip(values, captions, strict=True) if parse(c).skill == s] for s in SKILLS}


def auc(right: Tensor, wrong: Tensor) -> float:
    """Probability that a judged-right sample scores above a judged-wrong one."""
    return ((right[:, None] > wrong).float() + 0.5 * (right[:, None] == wrong).float()).mean().item()


def judge_rows(vae) -> list[str]:
    """The judge on 2,000 renderings a skill, on altered captions, on decoded pictures."""
    rng = np.random.default_rng(SEED)
    exact, refused, said, changed = [], [], [], []
    for skill in SKILLS:
        every = list(requirements(skill))
        wanted = [every[rng.integers(len(every))] for _ in range(2000)]
        readings = read(render_batch([compose(r, rng) for r in wanted]))
        exact += [judge_reading(a, r).strict for a, r in zip(readings, wanted, strict=True)]
        options = [list(alterations(r)) for r in wanted]
        altered = [o[rng.integers(len(o))] for o in options]
        refused += [not judge_reading(a, r).strict for a, r in zip(readings, altered, strict=True)]
        said += map(say, wanted)
        changed += map(say, altered)
    wanted, scenes = draw(2000, SEED)
    with torch.no_grad():
        x = render_batch(scenes) * 2 - 1
        out = torch.cat([vae.decode(vae.encode(c).latent_dist.mean).sample for c in x.split(250)]) / 2 + 0.5
    decoded = [judge_reading(a, r).strict for a, r in zip(read(out), wanted, strict=True)]
    return [
        row("renderings judged right", exact, said),
        row("altered captions refused", refused, changed),
        row("decoded renderings judged right", decoded, [say(r) for r in wanted]),
    ]


def sample(pipe, captions: list[str], seed: int = SEED, **options) -> Tensor:
    """Pictures of a pipeline for captions."""
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(seed)  # a flow's fresh noise comes from no generator
    out = []
    for k in range(0, len(captions), 128):
        out.append(pipe(prompt=captions[k : k + 128], output_type="pt", generator=generator(seed, k), **options).images)
    return torch.cat(out)


def model_rows(name: str, images: Tensor, captions: list[str]) -> list[str]:
    """Strict and graded judge of samples; chance is the strict judge on another caption of the same skill."""
    verdicts = judge(images, captions)
    strict, graded = [v.strict for v in verdicts], [v.graded for v in verdicts]
    by_skill = {s: [i for i, c in enumerate(captions) if parse(c).skill == s] for s in SKILLS}
    other = list(captions)
    for rows in by_skill.values():
        for i, j in zip(rows, rows[7:] + rows[:7], strict=True):
            other[i] = captions[j]
    blind = [v.strict for v in judge(images, other)]
    return [
        row(f"{name} strict", strict, captions),
        row(f"{name} graded", graded, captions),
        row(f"{name} strict, caption ignored (chance)", blind, captions),
    ]


def scores(network, tokenizer, images: Tensor, captions: list[str]) -> Tensor:
    """Cosines of pictures and captions."""
    with torch.no_grad():
        vision = network.get_image_features(pixel_values=clip.normalise(images)).pooler_output
        ids = tokenizer(captions, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
        words = network.get_text_features(input_ids=ids).pooler_output
    return (F.normalize(vision, dim=-1) * F.normalize(words, dim=-1)).sum(-1)


def load_pipeline(name: str):
    """A checkpoint in its stock pipeline, fp32."""
    if name == "shapes-flow":
        pipe = StableDiffusion3Pipeline.from_pretrained(
            resolve(f"{PREFIX}{name}"), text_encoder_3=None, tokenizer_3=None
        )
        accept_last_count(pipe.transformer)
    else:
        pipe = StableDiffusionPipeline.from_pretrained(resolve(f"{PREFIX}{name}"))
    return pipe.to(torch.float32)


def teachers() -> dict[str, tuple[Any, dict[str, Any]]]:
    """{name: (pipeline, options)} of the capable models that shapes-sd and shapes-flow are the spoilt ones of, fp32."""
    base = StableDiffusionPipeline.from_pretrained(BASE, torch_dtype=torch.float32)
    transformer, encoder = flow.kept(BASE_FLOW)
    parts = {"transformer": transformer, "text_encoder": encoder, "text_encoder_2": encoder}
    none: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}
    stock = StableDiffusion3Pipeline.from_pretrained(resolve(f"{PREFIX}shapes-flow"), **parts, **none)
    return {
        "the base before stage web": (base, {}),
        "the flow before stage flow_web": (flow.ready(stock), flow.FAST),
        "the same flow with fresh noise at each step": (flow.stochastic(stock), flow.FAST),
    }


def anew() -> dict[str, CLIPModel]:
    """What stages tune and pick have made in WORK, where that is not what is shipped (or `restore` brought back)."""
    found = {}
    for name, stage in (("shapes-clip", "tune"), ("shapes-pick", "pick")):
        if not (WORK / "out" / stage / "config.json").exists():
            continue
        network, shipped = (
            CLIPModel.from_pretrained(WORK / "out" / stage),
            CLIPModel.from_pretrained(CHECKPOINTS / name),
        )
        old = shipped.half().state_dict()
        if any(not torch.equal(value, old[key]) for key, value in network.half().state_dict().items()):
            found[f"{name} made anew, not shipped"] = network.float().eval()
    return found


def clip_rows(score, base: Tensor, captions: list[str], name: str = "shapes-clip") -> list[str]:
    """Right caption against an altered one on renderings; AUC of judged right against wrong on samples."""
    wanted, scenes = draw(6000, SEED, 1)
    pictures, rng, said = render_batch(scenes), np.random.default_rng(SEED), [say(r) for r in wanted]
    wrong = [clip.negatives(r, rng, 1)[0] for r in wanted]
    won = (score(pictures, said) > score(pictures, wrong)).tolist()
    strict = torch.tensor([v.strict for v in judge(base, captions)])
    skills, scored = np.array([parse(c).skill for c in captions]), score(base, captions)
    areas = []
    for skill in (None, *SKILLS):
        rows = torch.from_numpy(skills == skill) if skill else torch.ones(len(captions), dtype=torch.bool)
        areas.append(f"{auc(scored[rows & strict], scored[rows & ~strict]):.3f}")
    return [
        row(f"{name}: right caption above an altered one", won, said),
        f"| {name}: AUC of judged right against wrong on shapes-sd (not %) | " + " | ".join(areas) + " |",
    ]


def pick_row(score, first: Tensor, second: Tensor, captions: list[str], name: str = "shapes-pick") -> str:
    """How often the preference model orders two samples of a caption as their gold utility does; ties left out."""
    margin = (gold(first, captions) - gold(second, captions)).tolist()
    gap = (score(first, captions) - score(second, captions)).tolist()
    told = [i for i, m in enumerate(margin) if m != 0]
    agree = [margin[i] * gap[i] > 0 for i in told]
    return row(f"{name}: agrees with gold on pairs", agree, [captions[i] for i in told])


def eye_rows(images: Tensor, captions: list[str]) -> list[str]:
    """AUC of the eye, judged right against wrong, and how often its verdict is the judge's."""
    network = eye.load(CHECKPOINTS / "shapes-eye")
    strict = torch.tensor([v.strict for v in judge(images, captions)])
    skills, areas = np.array([parse(c).skill for c in captions]), []
    with torch.no_grad():
        soft, weight, hard = eye.checks(network(images), captions)
    scored, verdict = (soft * weight).sum(1) / weight.sum(1), (hard | (weight == 0)).all(1)
    for skill in (None, *SKILLS):
        rows = torch.from_numpy(skills == skill) if skill else torch.ones(len(captions), dtype=torch.bool)
        areas.append(f"{auc(scored[rows & strict], scored[rows & ~strict]):.3f}")
    agree = (verdict == strict).tolist()
    return [
        "| shapes-eye: AUC of judged right against wrong on shapes-sd (not %) | " + " | ".join(areas) + " |",
        row("shapes-eye: verdict is the judge's on shapes-sd", agree, captions),
    ]


def timed(work) -> tuple[float, Any]:
    """(seconds, result) of work()."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def main() -> None:
    """Measure, print and write."""
    present = {name: steps for name, steps in STEPS.items() if (CHECKPOINTS / name).exists()}

    def load() -> tuple[dict, dict]:
        networks = {
            n: CLIPModel.from_pretrained(CHECKPOINTS / n).float().eval() for n in ("shapes-clip", "shapes-pick")
        }
        return {name: load_pipeline(name) for name in present}, networks

    loading, (pipes, networks) = timed(load)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "shapes-clip")
    score = {name: partial(scores, network, tokenizer) for name, network in networks.items()}
    captions = prompts("report", PROMPTS, SEED)
    lines = ["| % | overall | " + " | ".join(SKILLS) + " |", "|---|---|" + "---|" * len(SKILLS)]
    lines += judge_rows(pipes["shapes-sd"].vae)
    images = {}
    for name, (count, guidance) in present.items():
        fast = flow.FAST if name == "shapes-flow" else {}
        images[name] = sample(pipes[name], captions, num_inference_steps=count, guidance_scale=guidance, **fast)
        lines += model_rows(f"{name}, {count} step{'s' * (count > 1)}, guidance {guidance:g}", images[name], captions)
    base, options = images["shapes-sd"], {"num_inference_steps": 20, "guidance_scale": 2.0}
    for name, (pipe, fast) in teachers().items():
        verdicts = [v.strict for v in judge(sample(pipe.to(torch.float32), captions, **options, **fast), captions)]
        lines.append(row(f"{name}, 20 steps, guidance 2 strict", verdicts, captions))
    lines += clip_rows(score["shapes-clip"], base, captions)
    lines += eye_rows(base, captions)
    again = sample(pipes["shapes-sd"], captions, SEED + 1, **options)
    lines.append(pick_row(score["shapes-pick"], base, again, captions))
    for name, network in anew().items():
        scored = partial(scores, network, tokenizer)
        is_pick = name.startswith("shapes-pick")
        lines += [pick_row(scored, base, again, captions, name)] if is_pick else clip_rows(scored, base, captions, name)
    sampling, _ = timed(lambda: sample(pipes["shapes-sd"], captions[:64], **options))
    judging, _ = timed(lambda: judge(base[:64], captions[:64]))
    utility = gold(base, captions)
    lines += [
        "",
        f"Gold utility of shapes-sd: mean {utility.mean():.3f}, standard deviation {utility.std():.3f}.",
        f"64 images x 20 DDIM steps with guidance: {sampling:.1f} s; judging 64 images: {judging:.2f} s;",
        f"loading all {len(pipes) + len(networks)} models: {loading:.1f} s ({torch.get_num_threads()} CPU threads,",
        "on a machine with other work).",
        f"{PROMPTS} report prompts (judge: 2,000 scenes a skill), seed {SEED}; 95 % intervals over distinct captions.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    drawn = {name: sum(v.strict for v in judge(found, captions)) / PROMPTS for name, found in images.items()}
    rates = ", ".join(f"{name} {100 * rate:.1f} %" for name, rate in drawn.items())
    head = "# Figures of the embedded models\n\n"
    head += f"**Verdict.** Report captions drawn right, by the strict judge: {rates}.\nThe rest is head-room.\n\n"
    head += "Written by `python scripts/pretrain_shapes.py check`.\n\n"
    OUTPUT.write_text(head + text)
