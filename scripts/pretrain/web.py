"""Stage web: the capable base goes on, shortly, on what the web is like: captions that are often wrong, dull pictures.

A third of the captions differ from their picture in one attribute; colours are pale, light falls unevenly, objects
crowd at the edges, and some pictures are blurred or noisy. What the base could draw before stays inside and no longer
shows: that is what alignment brings out again, in this world as in the real one. The text tower is left as it was.
"""

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor

from align.shapes.captions import alterations, say
from align.shapes.scene import REACH, SIZE, Object, Scene, render_batch
from align.shapes.taste import gold
from scripts.pretrain import sd, text
from scripts.pretrain.common import DEVICE, WORK, draw, generator, parameters, record, train
from scripts.pretrain.pool import Drawing, Pool

WRONG = 0.35  # share of captions with one attribute wrong
DULL, UNEVEN = (0.25, 0.55), (0.12, 0.3)  # saturation of the objects, change of the background's level
ASIDE = 4.0  # pixels that a scene is pushed to one side, at most
BLURRED, NOISY = 0.15, 0.15  # shares of the pictures


def load() -> StableDiffusionPipeline:
    """The trained pipeline, fp32."""
    pipe = StableDiffusionPipeline.from_pretrained(WORK / "out" / "web")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _aside(scene: Scene, rng: np.random.Generator) -> tuple[Object, ...]:
    """The objects pushed together in one direction, as far as all stay in the picture."""
    angle, reach = rng.uniform(0, 2 * math.pi), ASIDE
    dx, dy = math.cos(angle), math.sin(angle)
    for o in scene.objects:
        margin = REACH[o.shape] * o.radius
        room_x = (SIZE - o.x if dx > 0 else o.x) - margin
        room_y = (SIZE - o.y if dy > 0 else o.y) - margin
        reach = min(reach, max(0.0, room_x) / max(abs(dx), 1e-6), max(0.0, room_y) / max(abs(dy), 1e-6))
    return tuple(replace(o, x=o.x + reach * dx, y=o.y + reach * dy) for o in scene.objects)


def careless(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene in pale colours, unevenly lit, pushed to one side."""
    base = rng.uniform(*DULL)
    painted = tuple(
        replace(o, saturation=float(np.clip(base + rng.uniform(-0.08, 0.08), *DULL))) for o in _aside(scene, rng)
    )
    return replace(scene, objects=painted, light=float(rng.uniform(*UNEVEN)))


def shown(count: int, *key: int) -> Drawing:
    """`count` careless pictures, some blurred or noisy, WRONG of them with a caption that is not theirs."""
    wanted, scenes = draw(count, *key)
    rng = np.random.default_rng([*key, 1])
    scenes = [careless(s, rng) for s in scenes]
    captions = []
    for r in wanted:
        options = list(alterations(r)) if rng.random() < WRONG else [r]
        captions.append(say(options[rng.integers(len(options))]))
    images = render_batch(scenes)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    blurred = torch.from_numpy(rng.random(count) < BLURRED)[:, None, None, None]
    grain = torch.from_numpy(rng.standard_normal(images.shape).astype(np.float32))
    noisy = torch.from_numpy(rng.random(count) < NOISY)[:, None, None, None]
    return captions, scenes, (torch.where(blurred, soft, images) + 0.04 * noisy * grain).clamp(0, 1)


def state_of(pipe, count: int, seed: int = 5, **options) -> dict:
    """Judge of a pipeline per skill, and the mean of its gold utility; options of its call."""
    from align.shapes.prompts import prompts

    captions, utility = prompts("select", 192, seed), []
    options = {"num_inference_steps": 20, "guidance_scale": sd.GUIDANCE} | options
    for k in range(0, len(captions), 96):
        part = captions[k : k + 96]
        drawn = pipe(prompt=part, generator=generator(seed, 35, k), output_type="pt", **options)
        utility.append(gold(drawn.images, part))
    judge = sd.judged(pipe, count, **options)
    return judge | {"gold": round(torch.cat(utility).mean().item(), 3)}


def main(steps: int = 240, batch: int = 64, seed: int = 0) -> None:
    torch.manual_seed(seed)
    source = sd.load()
    unet = source.unet.to(DEVICE, memory_format=torch.channels_last).train()
    encoder = source.text_encoder.to(DEVICE).requires_grad_(False).eval()
    pool = Pool(seed, window=4, fresh=16, show=shown)
    signal = sd.scheduler().alphas_cumprod.to(DEVICE)
    empty = text.tokens([""])[0].to(DEVICE)

    def loss(step: int) -> Tensor:
        g = generator(seed, 36, step)
        x, words, _ = pool.batch(step, batch, g)
        words[(torch.rand(batch, generator=g) < sd.DROP).to(DEVICE)] = empty
        t, noise = sd.times(batch, g).to(DEVICE), torch.randn(batch, 4, 8, 8, generator=g).to(DEVICE)
        a = signal[t][:, None, None, None]
        out = unet(a.sqrt() * x + (1 - a).sqrt() * noise, t, encoder(words).last_hidden_state).sample
        return (out - noise).pow(2).mean()

    def look(step: int) -> None:
        print(step, state_of(sd.pipeline(unet.eval(), encoder), 192), flush=True)
        unet.train()

    figures = train("web", {"unet": unet}, loss, steps=steps, lr=6e-4, warmup=30, ema=0.98, look=(120, look))
    pipe = sd.pipeline(unet, encoder)
    pipe.save_pretrained(WORK / "out" / "web")
    record("web", figures | {"parameters": parameters([unet]), "judge": state_of(pipe, 768)})
