"""Stage turbo: a few-step student of the base model, guidance included, by regression along its trajectories.

    x_s = a x_t + b v(x_t, t),   a = alpha_s alpha_t + sigma_s sigma_t,   b = sigma_s alpha_t - alpha_s sigma_t
    loss = |v - (x_s* - a x_t)/b|^2,   (x_t, x_s*) on a trajectory of the guided base model
One step of the student stands for several guided steps of its teacher (Salimans and Ho 2022, arXiv 2202.00512; with
guidance folded in, Meng et al. 2023, arXiv 2210.03142). It predicts v, so that the step from pure noise magnifies no
error of the network. Distribution matching to a single step was tried before: see docs/models/shapes.md.
"""

import copy

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from scripts.pretrain import samples, sd, trajectories
from scripts.pretrain.common import WORK, generator, parameters, record, train

NUM_STEPS = 2  # of the student; a divisor of trajectories.STOPS


def load() -> StableDiffusionPipeline:
    """The trained pipeline, fp32."""
    pipe = StableDiffusionPipeline.from_pretrained(WORK / "out" / "turbo")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main(steps: int = 1500, batch: int = 64, seed: int = 0) -> None:
    torch.manual_seed(seed)
    base = sd.load()
    states, captions = trajectories.load(seed)
    words, rows = samples.embed(captions, base)
    grid = trajectories.scheduler("v_prediction")
    grid.set_timesteps(NUM_STEPS)
    times = torch.cat([grid.timesteps, torch.tensor([-1])])
    signal = torch.cat([grid.alphas_cumprod, torch.ones(1)])[times]  # the last is the data
    alpha, sigma = signal.sqrt()[:, None, None, None], (1 - signal).sqrt()[:, None, None, None]
    stride = trajectories.STOPS // NUM_STEPS
    student = copy.deepcopy(base.unet).requires_grad_(True).to(memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        g = generator(seed, 25, step)
        pick = torch.randint(len(states), (batch,), generator=g)
        i = torch.randint(NUM_STEPS, (batch,), generator=g)
        x_t, x_s = states[pick, i * stride], states[pick, (i + 1) * stride]
        a = alpha[i + 1] * alpha[i] + sigma[i + 1] * sigma[i]
        b = sigma[i + 1] * alpha[i] - alpha[i + 1] * sigma[i]
        return (student(x_t, times[i], words[rows[pick]]).sample - (x_s - a * x_t) / b).pow(2).mean()

    def look(step: int) -> None:
        if (step + 1) % 300 == 0:
            print(step + 1, _judged(base, student, 192), flush=True)

    figures = train("turbo", {"student": student}, loss, steps=steps, lr=1e-3, ema=0.99, after=look)
    _pipeline(base, student).save_pretrained(WORK / "out" / "turbo")
    figures |= {"parameters": parameters([student]), "denoising steps": NUM_STEPS}
    record("turbo", figures | {"judge": _judged(base, student, 768)})


def _pipeline(base: StableDiffusionPipeline, student) -> StableDiffusionPipeline:
    pipe = sd.pipeline(student, base.text_encoder)
    pipe.scheduler = trajectories.scheduler("v_prediction")
    return pipe


def _judged(base: StableDiffusionPipeline, student, count: int) -> dict[str, float]:
    return sd.judged(_pipeline(base, student), count, num_inference_steps=NUM_STEPS, guidance_scale=1.0)
