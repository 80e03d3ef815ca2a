"""What holds a capable model back: the two of them beside each other at equal noise, and each in place of the other.

First table: E |x^ - x|^2 at time t = noise / (noise + signal), x^ = x_t - t v, of cells that an object covers, of
those beside one (where outlines are) and of the rest. Much noise leaves the layout open, less of it the shapes.
Second: the strict judge of two objects, drawn by one model down to a time and by the other from there. Where the other
model mends it, there the fault is. Third: the same pictures along the ODE and with fresh noise at each step, and how
many show one of the two shapes twice.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from align.shapes.captions import requirements, say
from align.shapes.judge import judge, read
from scripts.pretrain import flow, sd, text, vae
from scripts.pretrain.common import DEVICE, generator
from scripts.pretrain.pool import Pool

TIMES = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9)
CHANGES = (0.4, 0.55, 0.65, 0.75)
CELLS = ("object", "beside", "rest")
PART, STEPS = 120, 20
NOISIEST = 0.93  # the base's schedule ends there: what lies above is the flow's


class Models:
    """Stages sd and flow as velocity fields of one time."""

    def __init__(self) -> None:
        self.base, self.flow = sd.load().to(DEVICE), flow.load().to(DEVICE)
        signal = sd.scheduler().alphas_cumprod.to(DEVICE)
        self.logs = ((1 - signal) / signal).log() / 2  # of noise / signal at each step of the base

    def velocity(self, name: str, x_t: Tensor, t: float, ids: Tensor) -> Tensor:
        """(B, 4, 8, 8) noise - x that `sd` or `flow` predicts at x_t = (1 - t) x + t noise for token ids (B, L)."""
        times = torch.full((len(x_t),), t, device=DEVICE)
        if name == "flow":
            states, pooled, _ = flow.encode(self.flow.text_encoder, ids)
            return flow.velocity(self.flow.transformer, x_t, times, states, pooled)
        ratio = t / (1 - t)
        after = int(torch.searchsorted(self.logs, math.log(ratio)).clamp(1, len(self.logs) - 1))
        low, high = self.logs[after - 1].item(), self.logs[after].item()
        step = after - 1 + min(1.0, max(0.0, (math.log(ratio) - low) / (high - low)))
        scaled = x_t / (1 - t)
        states = self.base.text_encoder(ids).last_hidden_state
        eps = self.base.unet(scaled / math.hypot(1, ratio), times.new_full(times.shape, step), states).sample
        return (1 + ratio) * eps - scaled

    def guided(self, name: str, x_t: Tensor, t: float, ids: Tensor, scale: float) -> Tensor:
        """`velocity` with classifier-free guidance."""
        empty = text.tokens([""]).to(DEVICE).expand_as(ids)
        told, untold = self.velocity(name, torch.cat([x_t, x_t]), t, torch.cat([ids, empty])).chunk(2)
        return untold + scale * (told - untold)


def kinds(labels: Tensor) -> Tensor:
    """labels (B, 64, 2), 0 for none -> (3, B, 8, 8) of 0 and 1, in the order of CELLS."""
    covered = (labels[..., :1] > 0).float().mT.unflatten(-1, (8, 8))
    near = F.max_pool2d(covered, 3, 1, 1)
    return torch.stack([covered, near - covered, 1 - near]).squeeze(2)


@torch.no_grad()
def errors(models: Models, count: int = 1024, seed: int = 999) -> Iterator[tuple[float, str, dict[str, float]]]:
    """(time, name, kind of cell or `all` -> mean squared error) on `count` scenes that no stage trains on."""
    g = generator(seed, 39)
    x, ids, labels = Pool(seed, window=1).batch(0, count, g)
    noise, cells = torch.randn(x.shape, generator=g).to(DEVICE), kinds(labels)
    for t in TIMES:
        for name in ("sd", "flow"):
            parts = zip(x.split(PART), noise.split(PART), ids.split(PART), strict=True)
            error = torch.cat(
                [models.velocity(name, torch.lerp(z, e, t), t, w) - (e - z) for z, e, w in parts]
            )  # of v; that of x is t times it
            squares = (t * error).pow(2).mean(1)
            found = {k: float((squares * m).sum() / m.sum()) for k, m in zip(CELLS, cells, strict=True)}
            yield t, name, found | {"all": float(squares.mean())}


@torch.no_grad()
def drawn(
    models: Models, who: Callable[[float], str], captions: list[str], seed: int = 7, *, fresh: bool = False
) -> Tensor:
    """(N, 3, 32, 32) in [0, 1]: Euler steps at the flow's guidance, at each time by the model that `who` names;
    `fresh`: each ends in noise drawn anew, as `flow.stochastic` has it."""
    g = generator(seed, 42)
    ids, autoencoder, pictures = text.tokens(captions).to(DEVICE), vae.load().to(DEVICE), []
    noise = torch.randn(len(ids), 4, 8, 8, generator=generator(seed, 41)).to(DEVICE)
    times = [*torch.linspace(1, 1e-3, STEPS).tolist(), 0.0]
    for x, words in zip(noise.split(PART), ids.split(PART), strict=True):
        for t, after in pairwise(times):
            name = "flow" if t > NOISIEST else who(t)
            v = models.guided(name, x, t, words, flow.GUIDANCE)
            x, e = x - t * v, torch.randn(x.shape, generator=g).to(DEVICE) if fresh else x + (1 - t) * v
            x = torch.lerp(x, e, after)
        pictures.append(autoencoder.decode(x / autoencoder.config["scaling_factor"]).sample)
    return (torch.cat(pictures) / 2 + 0.5).clamp(0, 1)


def exchanged(models: Models, repeats: int = 3) -> Iterator[tuple[float, float, float]]:
    """(time of the change, strict judge of flow then sd, of sd then flow), `repeats` times each caption of two
    objects; at 1 the second alone."""
    captions = [say(r) for r in requirements("two")] * repeats

    def right(who: Callable[[float], str]) -> float:
        return sum(v.strict for v in judge(drawn(models, who, captions), captions)) / len(captions)

    for change in (1.0, *reversed(CHANGES)):
        yield (
            change,
            right(lambda t, change=change: "flow" if t > change else "sd"),
            right(lambda t, change=change: "sd" if t > change else "flow"),
        )


def mistakes(models: Models, repeats: int = 3) -> Iterator[tuple[str, str, float, float]]:
    """(name, how, strict judge, share that shows two objects of one shape) of each caption of two objects, `repeats`
    times."""
    captions = [say(r) for r in requirements("two")] * repeats
    for name in ("sd", "flow"):
        for fresh in (False, True):
            images = drawn(models, lambda t, name=name: name, captions, fresh=fresh)
            seen = [[o.shape for o in reading.objects] for reading in read(images)]
            twice = sum(len(shapes) == 2 and shapes[0] == shapes[1] is not None for shapes in seen)
            right = sum(v.strict for v in judge(images, captions))
            yield name, "fresh noise" if fresh else "ODE", right / len(captions), twice / len(captions)


def main() -> None:
    """Print the tables."""
    models = Models()
    print("| time | model | all | " + " | ".join(CELLS) + " |\n|" + "---|" * (3 + len(CELLS)))
    for t, name, found in errors(models):
        print(f"| {t:.2f} | {name} | " + " | ".join(f"{found[k]:.4f}" for k in ("all", *CELLS)) + " |", flush=True)
    print("\n| change at | flow, then sd | sd, then flow |\n|---|---|---|")
    for change, flow_first, base_first in exchanged(models):
        print(f"| {change:.2f} | {100 * flow_first:.0f} % | {100 * base_first:.0f} % |", flush=True)
    print("\n| model | drawn by | right | one shape twice |\n|---|---|---|---|")
    for name, how, right, twice in mistakes(models):
        print(f"| {name} | {how} | {100 * right:.0f} % | {100 * twice:.0f} % |", flush=True)
