"""Stage flow_web: stage web's pictures and captions for the rectified flow. The text tower is left as it was."""

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from scripts.pretrain import flow, sd, text, web
from scripts.pretrain.common import DEVICE, WORK, generator, parameters, record, train
from scripts.pretrain.pool import Pool


def load() -> StableDiffusion3Pipeline:
    """The trained pipeline, fp32."""
    return flow.load("flow_web")


def main(steps: int = 240, batch: int = 64, seed: int = 0) -> None:
    torch.manual_seed(seed)
    source = flow.load()
    transformer = source.transformer.to(DEVICE).train()
    encoder = source.text_encoder.to(DEVICE).requires_grad_(False).eval()
    pool, empty = Pool(seed, window=4, fresh=16, show=web.shown), text.tokens([""])[0].to(DEVICE)

    def loss(step: int) -> Tensor:
        g = generator(seed, 38, step)
        x, words, _ = pool.batch(step, batch, g)
        words[(torch.rand(batch, generator=g) < sd.DROP).to(DEVICE)] = empty
        t, noise = flow.times(batch, g).to(DEVICE), torch.randn(batch, 4, 8, 8, generator=g).to(DEVICE)
        states, pooled, _ = flow.encode(encoder, words)
        out = flow.velocity(transformer, torch.lerp(x, noise, t[:, None, None, None]), t, states, pooled)
        return (out - (noise - x)).pow(2).mean()

    def look(step: int) -> None:
        print(step, web.state_of(flow.pipeline(transformer.eval(), encoder), 192, **flow.FAST), flush=True)
        transformer.train()

    settings = {"lr": 6e-4, "warmup": 30, "ema": 0.98}
    figures = train("flow_web", {"transformer": transformer}, loss, steps=steps, look=(120, look), **settings)
    pipe = flow.pipeline(transformer, encoder)
    pipe.save_pretrained(WORK / "out" / "flow_web")
    record(
        "flow_web", figures | {"parameters": parameters([transformer]), "judge": web.state_of(pipe, 768, **flow.FAST)}
    )
