"""Stage pick: the CLIP tuned on noisy preferences of the gold utility, a proxy of what is liked, as PickScore is.

Four pictures (samples of the base model, or renderings right and wrong) are looked at together under their caption
and altered ones; of every two pictures under a caption, and of every two captions of a picture, VOTES draws of the
Bradley-Terry model say which is better.

    loss = BCE(s_a - s_b, share of votes for a) + naming,   s = exp(scale) cos(image, text)
naming: linear heads, thrown away afterwards, tell shape and colour of each patch, number of objects and terms of taste.
Half the batches are mirrored, left and right in the captions with them.
"""

import itertools
import re
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel

from align.shapes.captions import RELATIONS, Requirement, alterations, parse, say
from align.shapes.compose import compose
from align.shapes.judge import judge_reading, read
from align.shapes.scene import render_batch
from align.shapes.taste import TEMPERATURE, gold, taste, taste_terms
from scripts.pretrain import clip, samples, tune
from scripts.pretrain.common import DEVICE, WORK, draw, parameters, record, train

DRAWN = 4_000  # groups of four renderings
VOTES = 8  # a pair
KNOWN, ASKED = 7, 4  # captions judged for a group, its own first, and how many of them a step looks at
SAMPLED, RENDERED = 20, 8  # groups a step
MOST = 5  # objects counted; more are "more"
PAIRS = torch.tensor(list(itertools.combinations(range(4), 2)))
CHOICES = torch.tensor(list(itertools.combinations(range(ASKED), 2)))


def load() -> CLIPModel:
    """The trained network, fp32, frozen."""
    return CLIPModel.from_pretrained(WORK / "out" / "pick").requires_grad_(False).eval()


def score(network: CLIPModel, images: Tensor, captions: list[str]) -> Tensor:
    """(B,) logits of pictures for their captions."""
    return network.logit_scale.exp() * tune.similarity(network, images, captions)


@dataclass(frozen=True)
class Groups:
    """Pictures in groups of four, and what is true of them.

    pixels (N, 4, 3, 32, 32) uint8; captions: N lists of KNOWN; utility (N, KNOWN, 4): gold of each picture for each
    caption; patches (N, 4, 64, 2); terms (N, 4, 4): of taste; number (N, 4): of objects, at most MOST + 1.
    """

    pixels: Tensor
    captions: list[list[str]]
    utility: Tensor
    patches: Tensor
    terms: Tensor
    number: Tensor


def _judged(pictures: Tensor, wanted: list[Requirement], rng: np.random.Generator) -> Groups:
    """(4 N) pictures with the N requirements of their groups -> groups, judged."""
    readings = read(pictures)
    captions, utility = [], []
    liked = [taste(r) for r in readings]
    for n, own in enumerate(wanted):
        options = list(alterations(own))
        order = rng.permutation(len(options))
        asked = [own] + [options[order[k % len(order)]] for k in range(KNOWN - 1)]
        four = range(4 * n, 4 * n + 4)
        utility.append([[judge_reading(readings[i], r).graded + liked[i] for i in four] for r in asked])
        captions.append([say(r) for r in asked])
    return Groups(
        (pictures * 255).round().byte().unflatten(0, (-1, 4)),
        captions,
        torch.tensor(utility),
        tune.patch_labels(readings).unflatten(0, (-1, 4)),
        torch.tensor([list(taste_terms(r).values()) for r in readings]).unflatten(0, (-1, 4)),
        torch.tensor([min(len(r.objects), MOST + 1) for r in readings]).unflatten(0, (-1, 4)),
    )


def _renderings(seed: int) -> Groups:
    """Groups of renderings: two right, two wrong in one attribute each, all slightly damaged."""
    rng = np.random.default_rng([seed, 11])
    wanted, first = draw(DRAWN, seed, 12)
    scenes = []
    for r, scene in zip(wanted, first, strict=True):
        options = list(alterations(r))
        wrong = rng.permutation(len(options))
        scenes += [scene, compose(r, rng), *(compose(options[wrong[k % len(wrong)]], rng) for k in range(2))]
    return _judged(clip.corrupt(render_batch(scenes), rng), wanted, rng)


def _samples(seed: int) -> Groups:
    """Groups of the base model's samples, of two seeds."""
    (_, a, first), (_, b, second) = samples.load(seed), samples.load(seed + 1)
    rng = np.random.default_rng([seed, 13])
    return _judged(samples.decode(torch.cat([a, b])), [parse(c) for c in (first + second)[::4]], rng)


def agreement(network: CLIPModel, images: Tensor, captions: list[str]) -> dict[str, float]:
    """How often the score orders a pair as its gold utility does; pairs of equal utility are left out."""
    utility = gold(images, captions)
    with torch.no_grad():
        parts = range(0, len(images), 256)
        scores = torch.cat([score(network, images[k : k + 256], captions[k : k + 256]).cpu() for k in parts])
    du, ds = utility[::2] - utility[1::2], scores[::2] - scores[1::2]
    told = du != 0
    skills = [parse(c).skill for c in captions[::2]]
    right = ((du * ds) > 0)[told].float()
    rows = {s: right[[k == s for k, t in zip(skills, told, strict=True) if t]] for s in sorted(set(skills))}
    return {"overall": round(right.mean().item(), 4)} | {s: round(v.mean().item(), 4) for s, v in rows.items()}


def mirrored(caption: str) -> str:
    """What a caption becomes when its picture is mirrored left to right."""
    return re.sub("left of|right of", lambda match: RELATIONS[match[0]], caption)


def choice(better: Tensor, worse: Tensor, margin: Tensor, rng: np.random.Generator) -> Tensor:
    """BCE of score differences against the share of VOTES votes that a margin in gold utility gets."""
    share = rng.binomial(VOTES, torch.sigmoid(margin / TEMPERATURE).double().numpy()) / VOTES
    return F.binary_cross_entropy_with_logits(better - worse, torch.from_numpy(share).to(better))


def main(steps: int = 3600, seed: int = 0) -> None:
    torch.manual_seed(seed)
    network = tune.load().requires_grad_(True).to(DEVICE)
    heads = nn.ModuleDict({"patch": clip.build_head(), "terms": nn.Linear(128, 4), "number": nn.Linear(128, MOST + 2)})
    heads = heads.to(DEVICE)
    pools = [(_samples(seed), SAMPLED), (_renderings(seed), RENDERED)]

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 15, step])
        picked = [(pool, int(i)) for pool, count in pools for i in rng.integers(len(pool.captions), size=count)]
        asked = [[0, *(1 + rng.permutation(KNOWN - 1)[: ASKED - 1])] for _ in picked]
        words = [pool.captions[i][k] for (pool, i), ks in zip(picked, asked, strict=True) for k in ks]
        utility = torch.stack([pool.utility[i][ks] for (pool, i), ks in zip(picked, asked, strict=True)])
        pixels = torch.cat([pool.pixels[i] for pool, i in picked]).float() / 255
        patches = torch.cat([pool.patches[i] for pool, i in picked])
        if rng.random() < 0.5:
            words, pixels = [mirrored(c) for c in words], pixels.flip(-1)
            patches = patches.unflatten(1, (8, 8)).flip(2).flatten(1, 2)
        seen = network.vision_model(pixel_values=clip.normalise(clip.corrupt(pixels, rng)).to(DEVICE))
        vision = F.normalize(network.visual_projection(seen.pooler_output), dim=-1).unflatten(0, (-1, 4))
        text = clip.embed_text(network, words).unflatten(0, (-1, ASKED))
        score = network.logit_scale.exp() * torch.einsum("gqd,gid->gqi", text, vision)
        a, b = PAIRS.unbind(1)
        between = choice(score[..., a], score[..., b], utility[..., a] - utility[..., b], rng)
        a, b = CHOICES.unbind(1)
        within = choice(score[:, a], score[:, b], utility[:, a] - utility[:, b], rng)
        naming = clip.dense(heads["patch"], seen.last_hidden_state[:, 1:], patches)
        terms = torch.cat([pool.terms[i] for pool, i in picked])
        naming = naming + F.binary_cross_entropy_with_logits(heads["terms"](seen.pooler_output), terms.to(DEVICE))
        number = torch.cat([pool.number[i] for pool, i in picked])
        naming = naming + F.cross_entropy(heads["number"](seen.pooler_output), number.to(DEVICE))
        return between + 0.3 * within + 0.3 * naming

    pairs = tune.held_out(seed + 1, 400, 2)

    def look(step: int) -> None:
        if (step + 1) % 300 == 0:
            print(step + 1, agreement(network.eval(), *pairs), flush=True)
            network.train()

    modules = {"pick": network, "heads": heads}
    given = {f"x_0 {k}": samples.load(k)[1] for k in (seed, seed + 1)}
    settings = {"lr": 7e-4, "warmup": 100, "weight_decay": 0.05, "ema": 0.998, "given": given}
    figures = train("pick", modules, loss, steps=steps, after=look, **settings)
    folder = WORK / "out" / "pick"
    network.to("cpu").save_pretrained(folder)
    figures |= {"parameters": parameters([network]), "groups": [len(pool.captions) for pool, _ in pools]}
    record("pick", figures | {"agreement": agreement(network, *pairs)})
