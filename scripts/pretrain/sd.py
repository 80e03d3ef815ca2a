"""Stage sd: the base model, a latent diffusion UNet that predicts noise, with the warmed-up text tower tuned along.

    loss = |eps - noise|^2, every noise level pulling alike, + naming + understanding
naming: a linear head on what the 4x4 half of the UNet hands up names shape and colour under each cell of the clean
picture; it is thrown away (representation alignment, Yu et al., arXiv 2410.06940, with known labels for features).
understanding: stage text's, on other captions; it keeps the relations in the tower until the UNet makes use of them.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from align.shapes.captions import SKILLS, parse
from align.shapes.judge import judge
from align.shapes.prompts import prompts
from align.shapes.scene import COLOURS, SHAPES
from scripts.pretrain import clip, text, vae
from scripts.pretrain.common import DEVICE, WORK, generator, parameters, record, train
from scripts.pretrain.pool import Pool

DROP, GUIDANCE = 0.1, 2.0
NOISY, CLIP = 1.5, 10.0  # shift of the times, largest gradient norm
NAMING, UNDERSTANDING = 0.5, 0.1  # weights


def build_unet() -> UNet2DConditionModel:
    """The untrained UNet: cross-attention at both 8x8 and 4x4."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=128,
        attention_head_dim=(2, 4),  # diffusers reads these as the number of heads: 32 channels each
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's own noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def pipeline(unet: UNet2DConditionModel, encoder: CLIPTextModel) -> StableDiffusionPipeline:
    """A stock pipeline around the trained parts."""
    pipe = StableDiffusionPipeline(
        vae=vae.load().to(DEVICE),
        text_encoder=encoder,
        tokenizer=text.load(),
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load() -> StableDiffusionPipeline:
    """The trained pipeline, fp32."""
    pipe = StableDiffusionPipeline.from_pretrained(WORK / "out" / "sd")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def judged(pipe, count: int, *, split: str = "select", batch: int = 96, seed: int = 5, **options) -> dict[str, float]:
    """Strict and graded judge of a pipeline on `count` prompts, overall and strict per skill."""
    captions = prompts(split, count, seed)
    verdicts = []
    for k in range(0, count, batch):
        part = captions[k : k + batch]
        images = pipe(prompt=part, output_type="pt", generator=generator(seed, k), **options).images
        verdicts += judge(images, part)
    rows = {s: [v.strict for v, c in zip(verdicts, captions, strict=True) if parse(c).skill == s] for s in SKILLS}
    return {
        "strict": round(float(np.mean([v.strict for v in verdicts])), 4),
        "graded": round(float(np.mean([v.graded for v in verdicts])), 4),
    } | {s: round(float(np.mean(r)), 4) for s, r in rows.items()}


class Levels(nn.Module):
    """log of the expected loss at each noise level, between KNOTS of t: loss / exp(u) + u is least at u = log E loss,
    so that every level pulls alike (Karras et al. 2024, arXiv 2312.02696, section 2.2). The eps loss of noisy times,
    where the layout is decided, is small and would be drowned otherwise."""

    KNOTS, SPEED = 15, 10.0

    def __init__(self, expected: float = 0.03) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.full((self.KNOTS,), math.log(expected) / self.SPEED))

    def forward(self, losses: Tensor, t: Tensor) -> Tensor:
        """losses (B,) at times t (B,) in [0, 1000) -> their weighted mean."""
        place = t.float() / 1000 * (self.KNOTS - 1)
        low = place.long()
        u = self.SPEED * torch.lerp(self.log[low], self.log[low + 1], place - low)
        return (losses * torch.exp(-u) + u).mean()


def named(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of shape and colour, mean over all cells plus mean over those of objects alone: which object stands
    where is told by few cells. logits: (B, 64, C); labels: (B, 64, 2), 0 for none."""
    parts = logits.flatten(0, 1).split([1 + len(SHAPES), 1 + len(COLOURS)], -1)
    loss = sum(F.cross_entropy(o, labels[..., k].flatten(), reduction="none") for k, o in enumerate(parts))
    return loss.mean() + loss[labels[..., 0].flatten() > 0].mean()


def times(batch: int, g: torch.Generator) -> Tensor:
    """(B,) stratified times, noisy ones more often: u -> s u / (1 + (s - 1) u) with s = NOISY."""
    even = (torch.arange(batch) + torch.rand(batch, generator=g)) / batch
    return (NOISY * even / (1 + (NOISY - 1) * even) * 1000).long().clamp(max=999)


def main(steps: int = 6_500, batch: int = 64, seed: int = 0, start: str | None = None) -> None:
    """Train; `start`: folder of a pipeline whose UNet and text tower training starts from."""
    torch.manual_seed(seed)
    unet, encoder = build_unet(), text.load_encoder()
    if start is not None:
        source = StableDiffusionPipeline.from_pretrained(start)
        unet, encoder = source.unet.float(), source.text_encoder.float()
    unet = unet.to(DEVICE, memory_format=torch.channels_last).train()
    encoder, levels = encoder.to(DEVICE).train(), Levels().to(DEVICE)
    head, facts = clip.build_head().to(DEVICE), text.Heads().to(DEVICE)
    said, told, things = (every.to(DEVICE) for every in text.every_caption())
    pool = Pool(seed)
    signal = scheduler().alphas_cumprod.to(DEVICE)
    empty = text.tokens([""])[0].to(DEVICE)
    middle: list[Tensor] = []  # what the 4x4 half of the network hands up: 8x8 cells of 128 channels
    unet.up_blocks[0].register_forward_hook(lambda *call: middle.__setitem__(slice(None), [call[2]]))

    def loss(step: int) -> Tensor:
        g = generator(seed, 31, step)
        x, words, labels = pool.batch(step, batch, g)
        words[(torch.rand(batch, generator=g) < DROP).to(DEVICE)] = empty
        t, noise = times(batch, g).to(DEVICE), torch.randn(batch, 4, 8, 8, generator=g).to(DEVICE)
        a = signal[t][:, None, None, None]
        out = unet(a.sqrt() * x + (1 - a).sqrt() * noise, t, encoder(words).last_hidden_state).sample
        naming = named(head(middle.pop().flatten(2).mT), labels)
        rows = torch.randint(len(said), (batch,), generator=g).to(DEVICE)
        understanding = facts.loss(encoder(said[rows]), (told[rows], things[rows]))
        return levels((out - noise).pow(2).mean((1, 2, 3)), t) + NAMING * naming + UNDERSTANDING * understanding

    def look(step: int) -> None:
        pipe = pipeline(unet.eval(), encoder.eval())
        pipe.save_pretrained(WORK / "out" / "sd")
        print(step, judged(pipe, 384, num_inference_steps=20, guidance_scale=GUIDANCE), flush=True)
        unet.train(), encoder.train()

    modules = {"unet": unet, "text": encoder, "head": head, "facts": facts, "levels": levels}
    figures = train("sd", modules, loss, steps=steps, lr=1e-3, clip=CLIP, look=(1000, look))
    pipe = pipeline(unet, encoder)
    pipe.save_pretrained(WORK / "out" / "sd")
    figures |= {"parameters": parameters([unet]), "text encoder": parameters([encoder])}
    record("sd", figures | {"judge": judged(pipe, 768, num_inference_steps=20, guidance_scale=GUIDANCE)})
