"""Stage latent: a head that reads people's liking (gold) in the noisy latents of the exported shapes-sd.

    loss = (r(x_t, t, caption) - gold(image, caption))^2,   t uniform on TIMES

on samples of the base and on drawings, each for its own caption and for an altered one.
"""

import json

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from align.latent.features import Features
from align.latent.head import Head
from align.registry import MODELS, build
from align.shapes.captions import alterations, parse, say
from align.shapes.judge import judge
from align.shapes.prompts import prompts
from align.shapes.scene import render_batch
from align.shapes.taste import gold
from samplers import TensorCond, add_noise
from scripts.pretrain.common import CHECKPOINTS, draw, generator, parameters, record, train
from scripts.pretrain.export import readme

BASE, NAME, AT = "embedded:shapes-sd", "shapes-latent", 0.2
SAMPLED, DRAWN, BATCH, TIMES = 1536, 2560, 64, (0.02, 0.7)
WAYS = ((10, 2.0), (6, 1.0), (6, 2.0))  # steps and guidance that samples are drawn with, in turn
HEAD = {"width": 64, "num_queries": 4, "num_attn_heads": 4, "use_proj_in": True, "out_dim": 1}


def sampled(model, captions: list[str], seed: int) -> Tensor:
    """Latents (len(captions), 4, 8, 8) that the base draws."""
    pipe, out = model.to_pipeline(), []
    pipe.set_progress_bar_config(disable=True)
    for n, k in enumerate(range(0, len(captions), 128)):
        steps, guidance = WAYS[n % len(WAYS)]
        options = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "latent"}
        out.append(pipe(prompt=captions[k : k + 128], generator=generator(seed, 61, k), **options).images)
    return torch.cat(out)


@torch.no_grad()
def asked(model, latents: Tensor, own: list[str], rng: np.random.Generator) -> tuple[Tensor, list[str], Tensor, Tensor]:
    """Latents, twice, with captions (their own, altered ones), gold (2 N,) and the strict verdicts."""
    images = torch.cat([model.codec.decode(part) for part in latents.split(256)])
    options = [[say(one) for one in alterations(parse(caption))] for caption in own]
    others = [several[rng.integers(len(several))] for several in options]
    captions, twice = [*own, *others], torch.cat([images, images])
    liked = torch.cat([gold(twice[k : k + 256], captions[k : k + 256]) for k in range(0, len(captions), 256)])
    right = torch.tensor([verdict.strict for verdict in judge(twice, captions)])
    return torch.cat([latents, latents]), captions, liked.float(), right


def auc(right: Tensor, scores: Tensor) -> float:
    """Probability that what is judged right scores above what is judged wrong."""
    a, b = scores[right][:, None], scores[~right]
    return ((a > b).float() + 0.5 * (a == b).float()).mean().item()


def scored(model, features: Features, head: Head, x0: Tensor, cond: Tensor, t: Tensor, g: torch.Generator) -> Tensor:
    """The head on latents (B, 4, 8, 8) noised to t (B,), with the text (B, N, D) of each."""
    eps = torch.randn(x0.shape, generator=g)
    with torch.no_grad():
        found = features(add_noise(model.schedule, x0, eps, t), t, TensorCond({"text": cond}))
    return head(found.image, found.text, found.embedding)


def figures_of(model, features: Features, head: Head, seed: int) -> dict:
    """On samples for prompts that trained nothing, each with its own caption and an altered one, at three levels."""
    own = prompts("select", 256, seed)
    whole = build(MODELS, MODELS.look_up({"name": "auto", "checkpoint": BASE}))  # the other is cut off
    x0, captions, liked, right = asked(model, sampled(whole, own, seed + 1), own, np.random.default_rng(seed + 65))
    cond, figures = model.text.encode(captions).tensors["text"], {}
    for level in (0.05, AT, 0.5):
        t = torch.full((len(x0),), level).double()
        with torch.no_grad():
            found = scored(model, features, head, x0, cond, t, generator(seed, 64))
        ranks = [one.argsort().argsort().float() for one in (found, liked)]
        figures[f"t={level}"] = {
            "AUC": round(auc(right, found), 3),
            "rank correlation with gold": round(torch.corrcoef(torch.stack(ranks))[0, 1].item(), 3),
        }
    return figures


def main(steps: int = 1500, seed: int = 0) -> None:
    """Train the head, measure it on samples for prompts of another set, and write it beside its base."""
    model = build(MODELS, MODELS.look_up({"name": "auto", "checkpoint": BASE}))
    with torch.no_grad():
        own = prompts("train", SAMPLED, seed)
        wanted, scenes = draw(DRAWN, seed, 62)
        drawn = torch.cat([model.codec.encode(render_batch(scenes[k : k + 256])).mean for k in range(0, DRAWN, 256)])
        latents = torch.cat([sampled(model, own, seed), drawn])
    rng = np.random.default_rng([seed, 60])
    x0, captions, liked, _ = asked(model, latents, [*own, *map(say, wanted)], rng)
    words = {c: k for k, c in enumerate(dict.fromkeys(captions))}
    cond = model.text.encode(list(words)).tensors["text"]
    features = Features(model, [1], [])
    told = {"width": HEAD["width"], "num_queries": HEAD["num_queries"], "heads": HEAD["num_attn_heads"]}
    head = Head(features.tokens, embedding=features.embedding, image=1, text=0, projected=True, **told)

    def loss(step: int) -> Tensor:
        g = generator(seed, 63, step)
        rows = torch.randint(len(x0), (BATCH,), generator=g).tolist()
        t = TIMES[0] + (TIMES[1] - TIMES[0]) * torch.rand(BATCH, generator=g, dtype=torch.float64)
        text = cond[[words[captions[k]] for k in rows]]
        return (scored(model, features, head, x0[rows], text, t, g) - liked[rows]).square().mean()

    figures = train("latent", {"head": head}, loss, steps=steps, lr=2e-3, given=model.network.state_dict())
    figures["parameters"] = parameters([head])
    write(head, figures | figures_of(model, features, head, seed))


def write(head: Head, figures: dict) -> None:
    """The checkpoint, its figures, and the page of all."""
    folder = CHECKPOINTS / NAME
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    state = {key: value.half().contiguous() for key, value in head.state_dict().items()}
    save_file(state, folder / "checkpoint" / "rm_head.safetensors")
    model_said = {"backbone_model_id": BASE, "visual_head_idx": [1], "text_head_idx": [], "use_lora": False}
    (folder / "config.json").write_text(json.dumps({"model": {**model_said, "reward_head": HEAD}}, indent=2) + "\n")
    record("latent", figures)
    (CHECKPOINTS / "README.md").write_text(readme())
