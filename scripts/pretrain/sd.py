"""Stage sd: the base model, a latent diffusion UNet that predicts noise, with the warmed-up text tower tuned along."""

import json

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModel

from align.shapes.captions import SKILLS, parse, say
from align.shapes.judge import judge
from align.shapes.prompts import prompts
from align.shapes.scene import render_batch
from scripts.pretrain import text, vae
from scripts.pretrain.common import WORK, draw, generator, parameters, record, train

SCENES, DROP, GUIDANCE = 50_000, 0.1, 2.0


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
        vae=vae.load(),
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


def latents(seed: int) -> tuple[Tensor, list[str]]:
    """SCENES scaled latent means (N, 4, 8, 8) with their captions, computed once and kept in WORK."""
    file, words = WORK / "latents.safetensors", WORK / "latents.json"
    if not words.exists():
        network, out, captions = vae.load(), [], []
        for k in tqdm(range(SCENES // 500), desc="latents", mininterval=5):
            wanted, scenes = draw(500, seed, 4, k)
            captions += [say(r) for r in wanted]
            with torch.no_grad():
                z = network.encode(render_batch(scenes) * 2 - 1).latent_dist.mean
            out.append((z * network.config["scaling_factor"]).half())
        save_file({"latents": torch.cat(out).contiguous()}, file)
        words.write_text(json.dumps(captions))
    return load_file(file)["latents"], json.loads(words.read_text())


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


def main(steps: int = 5200, batch: int = 64, seed: int = 0) -> None:
    torch.manual_seed(seed)
    unet, encoder = build_unet().to(memory_format=torch.channels_last), text.load_encoder()  # type: ignore[call-overload]
    data, captions = latents(seed)
    signal = scheduler().alphas_cumprod
    ids = text.tokens(captions)
    empty = text.tokens([""])[0]

    def loss(step: int) -> Tensor:
        g = generator(seed, step)
        rows = torch.randint(len(data), (batch,), generator=g)
        words = ids[rows].clone()
        words[torch.rand(batch, generator=g) < DROP] = empty
        t = ((torch.arange(batch) + torch.rand(batch, generator=g)) / batch * 1000).long().clamp(max=999)
        x, noise = data[rows].float(), torch.randn(batch, 4, 8, 8, generator=g)
        a = signal[t][:, None, None, None]
        out = unet(a.sqrt() * x + (1 - a).sqrt() * noise, t, encoder(words).last_hidden_state).sample
        weight = (5 * (1 - signal[t]) / signal[t]).clamp(max=1)  # min-SNR-5 (Hang et al. 2023, arXiv 2303.09556)
        return (weight * (out - noise).pow(2).mean((1, 2, 3))).mean()

    def look(step: int) -> None:
        if (step + 1) % 1000 == 0:
            with torch.no_grad():
                pipe = pipeline(unet.eval(), encoder.eval())
                print(step + 1, judged(pipe, 192, num_inference_steps=20, guidance_scale=GUIDANCE), flush=True)
            unet.train(), encoder.train()

    modules = {"unet": unet, "text": encoder}
    figures = train("sd", modules, loss, steps=steps, lr=1.5e-3, ema=0.998, after=look)
    pipe = pipeline(unet, encoder)
    pipe.save_pretrained(WORK / "out" / "sd")
    figures |= {"parameters": parameters([unet]), "text encoder": parameters([encoder])}
    record("sd", figures | {"judge": judged(pipe, 768, num_inference_steps=20, guidance_scale=GUIDANCE)})
