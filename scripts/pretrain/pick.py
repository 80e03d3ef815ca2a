"""Stage pick: the CLIP tuned on noisy preferences of the gold utility, a proxy of what is liked, as PickScore is.

loss = -log sigmoid(s_w - s_l), s = exp(scale) cos(image, text)                              Bradley-Terry
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel

from align.shapes.captions import alterations, parse, say
from align.shapes.compose import compose
from align.shapes.scene import render_batch
from align.shapes.taste import gold, prefer
from scripts.pretrain import clip, samples, tune
from scripts.pretrain.common import WORK, draw, parameters, record, train

DRAWN = 16_000  # pairs of renderings


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


def main(steps: int = 1500, batch: int = 64, seed: int = 0) -> None:
    torch.manual_seed(seed)
    network = tune.load().requires_grad_(True)
    _, x_0, captions = samples.load(seed)
    pictures = samples.decode(x_0)
    groups = range(0, len(captions), 4)
    left, right = zip(*((g + i, g + j) for g in groups for i, j in itertools.combinations(range(4), 2)), strict=True)
    a, b, drawn = _renderings(seed)
    a, b = torch.cat([pictures[list(left)], a]), torch.cat([pictures[list(right)], b])
    texts = [captions[i] for i in left] + drawn
    liked = prefer(gold(a, texts), gold(b, texts), np.random.default_rng([seed, 14]))[:, None, None, None]
    winners, losers = torch.where(liked, a, b), torch.where(liked, b, a)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 15, step])
        pick = rng.integers(len(texts), size=batch)
        words = [texts[i] for i in pick]
        both = clip.corrupt(torch.cat([winners[pick], losers[pick]]), rng)
        better, worse = score(network, both, words + words).chunk(2)
        return -F.logsigmoid(better - worse).mean()

    figures = train("pick", {"pick": network}, loss, steps=steps, lr=6e-4, warmup=50, weight_decay=0.05, ema=0.99)
    folder = WORK / "out" / "pick"
    network.save_pretrained(folder)
    figures |= {"parameters": parameters([network]), "pairs": len(texts)}
    record("pick", figures | {"agreement": agreement(network, *tune.held_out(seed + 1, 400, 2))})
