"""Stage turbo: a one-step student of the base model by distribution matching, warmed up on noise-sample pairs.

    grad_G = E_t [ (x0_fake(x_t) - x0_real(x_t)) / mean |x_0 - x0_real(x_t)| ]   at x_t = alpha_t G(x_T) + sigma_t eps
x0_real is the base model's guided prediction, x0_fake that of a second network, kept fitted to the student's samples
(Yin et al. 2024, DMD, arXiv 2311.18828, eq. 7-8; two time scales as in DMD2, arXiv 2405.14867). The student predicts
v, so that the one step from pure noise is x_0 = alpha x_T - sigma v, which magnifies no error of the network.
"""

import copy

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from align.shapes.prompts import prompts
from scripts.pretrain import samples, sd
from scripts.pretrain.common import WORK, generator, parameters, record, train

LAST, GUIDANCE = 999, 2.0


def scheduler() -> DDIMScheduler:
    """The base model's noise levels, v-prediction, steps counted from the last: one step starts at t = 999."""
    base = dict(sd.scheduler().config)
    return DDIMScheduler.from_config(
        base | {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "set_alpha_to_one": True}
    )


def one_step(unet: UNet2DConditionModel, x_T: Tensor, states: Tensor, signal: Tensor) -> Tensor:
    """x_0 of the student from pure noise."""
    t = torch.full((len(x_T),), LAST)
    v = unet(x_T, t, states).sample
    return signal[LAST].sqrt() * x_T - (1 - signal[LAST]).sqrt() * v


def load() -> StableDiffusionPipeline:
    """The trained pipeline, fp32."""
    pipe = StableDiffusionPipeline.from_pretrained(WORK / "out" / "turbo")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main(steps: int = 1600, batch: int = 32, seed: int = 0, warm: int = 500) -> None:
    torch.manual_seed(seed)
    x_T, x_0, captions = samples.load(seed)
    base = sd.load()
    teacher = base.unet.requires_grad_(False).to(memory_format=torch.channels_last)
    pool = prompts("train", 4096, seed + 1)
    states, rows = samples.embed(captions + pool, base)
    paired, free = rows[: len(captions)], rows[len(captions) :]
    signal = sd.scheduler().alphas_cumprod
    student = copy.deepcopy(teacher).requires_grad_(True)

    def regress(step: int) -> Tensor:
        pick = torch.randint(len(x_T), (64,), generator=generator(seed, 9, step))
        return (one_step(student, x_T[pick], states[paired[pick]], signal) - x_0[pick]).pow(2).mean()

    warmed = train("turbo_warm", {"student": student}, regress, steps=warm, lr=1e-3, ema=0.99)
    student.train()
    fake = copy.deepcopy(teacher).requires_grad_(True)

    def noised(x: Tensor, t: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        noise = torch.randn(x.shape, generator=g)
        a = signal[t][:, None, None, None]
        return a.sqrt() * x + (1 - a).sqrt() * noise, noise, a

    def fit(x: Tensor, words: Tensor, g: torch.Generator) -> Tensor:
        t = torch.randint(1000, (len(x),), generator=g)
        x_t, noise, _ = noised(x, t, g)
        return (fake(x_t, t, words).sample - noise).pow(2).mean()

    def match(step: int) -> Tensor:
        g = generator(seed, 10, step)
        pick = free[torch.randint(len(free), (batch,), generator=g)]
        words, empty = states[pick], states[:1].expand(batch, -1, -1)
        x = one_step(student, torch.randn(batch, 4, 8, 8, generator=g), words, signal)
        t = torch.randint(20, 980, (batch,), generator=g)
        with torch.no_grad():
            x_t, _, a = noised(x, t, g)
            blank, full = teacher(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([empty, words])).sample.chunk(2)
            real_eps = blank + GUIDANCE * (full - blank)
            real, false = ((x_t - (1 - a).sqrt() * e) / a.sqrt() for e in (real_eps, fake(x_t, t, words).sample))
            gradient = (false - real) / (x - real).abs().mean((1, 2, 3), keepdim=True)
        return 0.5 * (x - (x - gradient).detach()).pow(2).mean() + fit(x.detach(), words, g)

    def look(step: int) -> None:
        if (step + 1) % 200 == 0:
            print(
                step + 1,
                sd.judged(_pipeline(base, student), 192, num_inference_steps=1, guidance_scale=1.0),
                flush=True,
            )

    figures = train(
        "turbo",
        {"student": student, "fake": fake},
        match,
        steps=steps,
        lr=3e-4,
        betas=(0.0, 0.99),
        ema=0.99,
        after=look,
    )
    pipe = _pipeline(base, student)
    pipe.save_pretrained(WORK / "out" / "turbo")
    figures |= {"warm-up": warmed, "parameters": parameters([student])}
    record("turbo", figures | {"judge": sd.judged(pipe, 768, num_inference_steps=1, guidance_scale=1.0)})


def _pipeline(base: StableDiffusionPipeline, student: UNet2DConditionModel) -> StableDiffusionPipeline:
    pipe = sd.pipeline(student, base.text_encoder)
    pipe.scheduler = scheduler()
    return pipe
