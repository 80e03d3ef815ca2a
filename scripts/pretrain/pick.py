"""Stage pick: the CLIP tuned on noisy preferences of the gold utility, a proxy of what is liked, as PickScore is.

    loss = BCE(s_a - s_b, share of VOTES that prefer a) + dense naming of patches,   s = exp(scale) cos(image, text)
A vote is one draw of the Bradley-Terry model. Half the batches are mirrored, left and right in the caption with them.
"""

import itertools
import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel

from align.shapes.captions import RELATIONS, alterations, parse, say
from align.shapes.compose import compose
from align.shapes.judge import read
from align.shapes.scene import render_batch
from align.shapes.taste import gold, prefer
from scripts.pretrain import clip, samples, tune
from scripts.pretrain.common import WORK, draw, parameters, record, train

DRAWN = 16_000  # pairs of renderings
VOTES = 8  # a pair


def load() -> CLIPModel:
    """The trained network, fp32, frozen."""
    return CLIPModel.from_pretrained(WORK / "out" / "pick").requires_grad_(False).eval()


def score(network: CLIPModel, images: Tensor, captions: list[str]) -> Tensor:
    """(B,) logits of pictures for their captions."""
    return network.logit_scale.exp() * tune.similarity(network, images, captions)


def _renderings(seed: int) -> tuple[Tensor, Tensor, list[str]]:
    """Pairs of pictures for one caption: the first right, the second right or wrong in one attribute."""
    rng = np.random.default_rng([seed, 11])
    wanted, first = draw(DRAWN, seed, 12)
    other = []
    for r in wanted:
        options = list(alterations(r))
        other.append(compose(r if rng.random() < 0.5 else options[rng.integers(len(options))], rng))
    a, b = render_batch(first), render_batch(other)
    return clip.corrupt(a, rng), clip.corrupt(b, rng), [say(r) for r in wanted]


def agreement(network: CLIPModel, images: Tensor, captions: list[str]) -> dict[str, float]:
    """How often the score orders a pair as its gold utility does; pairs of equal utility are left out."""
    utility = gold(images, captions)
    with torch.no_grad():
        parts = range(0, len(images), 256)
        scores = torch.cat([score(network, images[k : k + 256], captions[k : k + 256]) for k in parts])
    du, ds = utility[::2] - utility[1::2], scores[::2] - scores[1::2]
    told = du != 0
    skills = [parse(c).skill for c in captions[::2]]
    right = ((du * ds) > 0)[told].float()
    rows = {s: right[[k == s for k, t in zip(skills, told, strict=True) if t]] for s in sorted(set(skills))}
    return {"overall": round(right.mean().item(), 4)} | {s: round(v.mean().item(), 4) for s, v in rows.items()}


def mirrored(caption: str) -> str:
    """What a caption becomes when its picture is mirrored left to right."""
    return re.sub("left of|right of", lambda match: RELATIONS[match[0]], caption)


def main(steps: int = 1800, batch: int = 56, seed: int = 0) -> None:
    torch.manual_seed(seed)
    network, head = tune.load().requires_grad_(True), clip.build_head()
    _, x_0, captions = samples.load(seed)
    pictures = samples.decode(x_0)
    groups = range(0, len(captions), 4)
    left, right = zip(*((g + i, g + j) for g in groups for i, j in itertools.combinations(range(4), 2)), strict=True)
    a, b, drawn = _renderings(seed)
    a, b = torch.cat([pictures[list(left)], a]), torch.cat([pictures[list(right)], b])
    texts = [captions[i] for i in left] + drawn
    ballots, gap = np.random.default_rng([seed, 14]), (gold(a, texts), gold(b, texts))
    votes = torch.stack([prefer(*gap, ballots) for _ in range(VOTES)]).float().mean(0)
    labels = [tune.patch_labels(read(x)) for x in (a, b)]

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 15, step])
        rows = rng.integers(len(texts), size=batch)
        words, both = [texts[i] for i in rows], torch.cat([a[rows], b[rows]])
        target = torch.cat([x[rows] for x in labels])
        if rng.random() < 0.5:
            words, both = [mirrored(c) for c in words], both.flip(-1)
            target = target.unflatten(1, (8, 8)).flip(2).flatten(1, 2)
        seen = network.vision_model(pixel_values=clip.normalise(clip.corrupt(both, rng)))
        vision = F.normalize(network.visual_projection(seen.pooler_output), dim=-1)
        text = clip.embed_text(network, words)
        better, worse = (network.logit_scale.exp() * (v * text).sum(-1) for v in vision.chunk(2))
        choice = F.binary_cross_entropy_with_logits(better - worse, votes[rows])
        return choice + 0.3 * clip.dense(head, seen.last_hidden_state[:, 1:], target)

    pairs = tune.held_out(seed + 1, 400, 2)

    def look(step: int) -> None:
        if (step + 1) % 300 == 0:
            print(step + 1, agreement(network.eval(), *pairs), flush=True)
            network.train()

    modules = {"pick": network, "head": head}
    figures = train("pick", modules, loss, steps=steps, lr=7e-4, warmup=100, weight_decay=0.05, ema=0.995, after=look)
    folder = WORK / "out" / "pick"
    network.save_pretrained(folder)
    figures |= {"parameters": parameters([network]), "pairs": len(texts)}
    record("pick", figures | {"agreement": agreement(network, *pairs)})
