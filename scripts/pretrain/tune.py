"""Stage tune: the CLIP goes on with the base model's samples, each judged for its own caption and for altered ones.

Renderings keep the contrastive loss of stage clip; on samples the logit of (picture, caption) is fitted to the
judge's verdict, so that a score tells right from wrong where it will be used: on generated pictures.

    loss = clip's loss on renderings + BCE(scale cos(image, text) + bias, strict verdict) + dense naming of patches
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPModel

from align.shapes.captions import SKILLS, Requirement, alterations, parse, say
from align.shapes.judge import Reading, judge_reading, read
from align.shapes.prompts import prompts
from scripts.pretrain import clip, samples, sd
from scripts.pretrain.common import DEVICE, WORK, generator, parameters, record, train

ASKED = 4  # captions a sample is judged for: its own, and altered ones
FIRST = 6  # of which as many are looked at, true ones first


def load() -> CLIPModel:
    """The trained network, fp32, frozen."""
    return CLIPModel.from_pretrained(WORK / "out" / "tune").requires_grad_(False).eval()


def patch_labels(readings: list[Reading]) -> Tensor:
    """(B, 64, 2) long: per patch the shape and the colour (0: none) of the object read there."""
    labels = torch.zeros(len(readings), 64, 2, dtype=torch.long)
    for i, reading in enumerate(readings):
        for o in reading.objects:
            share = F.avg_pool2d(torch.from_numpy(o.mask).float()[None, None], clip.PATCH).flatten()
            pair = (clip.SHAPE_IDS[o.shape] if o.shape else 0, clip.COLOUR_IDS[o.colour] if o.colour else 0)
            labels[i][share > 0.25] = torch.tensor(pair)
    return labels


def questions(own: Requirement, reading: Reading, rng: np.random.Generator) -> list[tuple[str, bool]]:
    """ASKED captions for a sample with the verdict on each: its own first, then altered ones, true ones before."""
    options = list(alterations(own))
    order = rng.permutation(len(options))[:FIRST]
    judged = [(say(options[k]), judge_reading(reading, options[k]).strict) for k in order]
    judged = sorted(judged, key=lambda pair: not pair[1])
    judged = [judged[k % len(judged)] for k in range(ASKED - 1)]
    return [(say(own), judge_reading(reading, own).strict), *judged]


def held_out(seed: int, count: int = 768, each: int = 1) -> tuple[Tensor, list[str]]:
    """Samples of the base model for prompts that train nothing, `each` of a prompt side by side."""
    pipe, out = sd.load().to(DEVICE), []
    captions = [c for c in prompts("select", count, seed) for _ in range(each)]
    options = {"num_inference_steps": 20, "guidance_scale": sd.GUIDANCE, "output_type": "pt"}
    for k in range(0, len(captions), 128):
        out.append(pipe(prompt=captions[k : k + 128], generator=generator(seed, 23, k), **options).images.cpu())
    return torch.cat(out), captions


def similarity(network: CLIPModel, images: Tensor, captions: list[str]) -> Tensor:
    """(B,) cosines of pictures and their captions."""
    vision = network.get_image_features(pixel_values=clip.normalise(images).to(network.device)).pooler_output
    return (F.normalize(vision, dim=-1) * clip.embed_text(network, captions)).sum(-1)


def auc(network: CLIPModel, images: Tensor, captions: list[str]) -> dict[str, float]:
    """How often a picture judged right scores above one judged wrong, overall and within each skill."""
    wanted = [parse(c) for c in captions]
    strict = torch.tensor([judge_reading(r, w).strict for r, w in zip(read(images), wanted, strict=True)])
    with torch.no_grad():
        scores = similarity(network, images, captions).cpu()

    def area(rows: Tensor) -> float:
        right, wrong = scores[rows & strict], scores[rows & ~strict]
        return round((right[:, None] > wrong[None]).float().mean().item(), 3)

    skills = np.array([w.skill for w in wanted])
    return {"overall": area(torch.ones(len(captions), dtype=torch.bool))} | {
        s: area(torch.from_numpy(skills == s)) for s in SKILLS
    }


def main(steps: int = 2000, batch: int = 40, seed: int = 0) -> None:
    torch.manual_seed(seed)
    network = clip.load()
    head, bias = clip.build_head().to(DEVICE), nn.Linear(1, 1).to(DEVICE)
    images, labels, wanted = clip.pool(seed + 1)
    _, x_0, captions = samples.load(seed)
    pictures = samples.decode(x_0)
    readings, own = read(pictures), [parse(c) for c in captions]
    pictures, shown = (pictures * 255).round().byte(), patch_labels(readings)
    check = held_out(seed)
    with torch.no_grad():  # the border between right and wrong starts at the mean score of samples, but for last bits
        bias.weight.fill_(0.5)
        border = 0.5 * network.logit_scale.exp() * similarity(network, *check).mean()
        bias.bias.fill_(-round(float(border), 2))
    network = network.requires_grad_(True).to(DEVICE)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 21, step])
        rows, picks = rng.integers(len(wanted), size=batch), rng.integers(len(own), size=batch)
        pixels = clip.corrupt(torch.cat([images[rows], pictures[picks]]).float() / 255, rng)
        seen = network.vision_model(pixel_values=clip.normalise(pixels).to(DEVICE))
        vision = F.normalize(network.visual_projection(seen.pooler_output), dim=-1)
        asked = [q for i in picks for q in questions(own[i], readings[i], rng)]
        real = [wanted[i] for i in rows]
        other = [c for r in real for c in clip.negatives(r, rng)]
        words = clip.embed_text(network, [say(r) for r in real] + other + [c for c, _ in asked])
        scale = network.logit_scale.exp().clamp(max=100)
        contrast = clip.contrast(vision[:batch], words[: batch * (1 + clip.NEGATIVES)], [say(r) for r in real], scale)
        texts = words[batch * (1 + clip.NEGATIVES) :].view(batch, ASKED, -1)
        logits = bias((scale * torch.einsum("bd,bkd->bk", vision[batch:], texts)).flatten()[:, None])[:, 0]
        verdict = F.binary_cross_entropy_with_logits(
            logits, torch.tensor([float(ok) for _, ok in asked], device=DEVICE)
        )
        target = torch.cat([labels[rows], shown[picks]])
        return contrast + 2 * verdict + clip.dense(head, seen.last_hidden_state[:, 1:], target)

    def look(step: int) -> None:
        if (step + 1) % 400 == 0:
            print(step + 1, auc(network.eval(), *check), flush=True)
            network.train()

    modules = {"clip": network, "head": head, "bias": bias}
    settings = {"lr": 7e-4, "warmup": 100, "weight_decay": 0.05, "given": {"x_0": x_0}}
    figures = train("tune", modules, loss, steps=steps, after=look, **settings)
    folder = WORK / "out" / "tune"
    network.to("cpu").save_pretrained(folder)
    CLIPImageProcessor.from_pretrained(WORK / "out" / "clip").save_pretrained(folder)
    figures |= {"parameters": parameters([network]), "right over altered": clip.accuracy(network, seed)}
    record("tune", figures | {"AUC on samples": auc(network, *check)})
