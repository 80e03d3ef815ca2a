"""Stage turbo: a few-step student of shapes-sd, guidance included, by regression along its trajectories, as a LoRA.

    x_s = a x_t + b v(x_t, t),   a = alpha_s alpha_t + sigma_s sigma_t,   b = sigma_s alpha_t - alpha_s sigma_t
    loss = |v - (x_s* - a x_t)/b|^2,   (x_t, x_s*) on a trajectory of the guided base model
One step of the student stands for several guided steps of its teacher (Salimans and Ho 2022, arXiv 2202.00512; with
guidance folded in, Meng et al. 2023, arXiv 2210.03142). It predicts v, so that the step from pure noise magnifies no
error of the network. Distribution matching to a single step was tried before: see docs/models/shapes.md.
"""

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from scripts.pretrain import samples, sd, trajectories, web
from scripts.pretrain.common import DEVICE, WORK, generator, record, train

NUM_STEPS = 2  # of the student; a divisor of trajectories.STOPS
RANK = 32
LAYERS = (  # every one that has weights to multiply with
    r".*(to_[qkv]|to_out\.0|proj_in|proj_out|net\.0\.proj|net\.2"
    r"|time_emb_proj|linear_[12]|conv(1|2|_in|_out|_shortcut)?)"
)


def load() -> StableDiffusionPipeline:
    """The trained pipeline, fp32, the LoRA beside the base's weights."""
    base = web.load()
    base.load_lora_weights(WORK / "out" / "turbo")
    return _pipeline(base, base.unet)


def main(steps: int = 1500, batch: int = 64, seed: int = 0) -> None:
    torch.manual_seed(seed)
    base = web.load().to(DEVICE)
    states, captions = trajectories.load(seed)
    words, rows = samples.embed(captions, base)
    grid = trajectories.scheduler("v_prediction")
    grid.set_timesteps(NUM_STEPS)
    times = torch.cat([grid.timesteps, torch.tensor([-1])])
    signal = torch.cat([grid.alphas_cumprod, torch.ones(1)])[times]  # the last is the data
    alpha, sigma = signal.sqrt()[:, None, None, None], (1 - signal).sqrt()[:, None, None, None]
    stride = trajectories.STOPS // NUM_STEPS
    student = base.unet.requires_grad_(False).to(memory_format=torch.channels_last)
    student.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS))

    def loss(step: int) -> Tensor:
        g = generator(seed, 25, step)
        pick = torch.randint(len(states), (batch,), generator=g)
        i = torch.randint(NUM_STEPS, (batch,), generator=g)
        x_t, x_s = states[pick, i * stride], states[pick, (i + 1) * stride]
        a = alpha[i + 1] * alpha[i] + sigma[i + 1] * sigma[i]
        b = sigma[i + 1] * alpha[i] - alpha[i + 1] * sigma[i]
        wanted, words_of = ((x_s - a * x_t) / b).to(DEVICE), words[rows[pick]]
        return (student(x_t.to(DEVICE), times[i].to(DEVICE), words_of).sample - wanted).pow(2).mean()

    def look(step: int) -> None:
        if (step + 1) % 300 == 0:
            print(step + 1, _judged(base, student, 192), flush=True)

    figures = train(
        "turbo", {"student": student}, loss, steps=steps, lr=1e-3, ema=0.99, after=look, given={"states": states}
    )
    layers = get_peft_model_state_dict(student)
    StableDiffusionPipeline.save_lora_weights(WORK / "out" / "turbo", unet_lora_layers=layers)
    figures |= {"parameters": sum(v.numel() for v in layers.values()), "denoising steps": NUM_STEPS}
    record("turbo", figures | {"judge": _judged(base, student, 768)})


def _pipeline(base: StableDiffusionPipeline, student) -> StableDiffusionPipeline:
    pipe = sd.pipeline(student, base.text_encoder)
    pipe.scheduler = trajectories.scheduler("v_prediction")
    return pipe


def _judged(base: StableDiffusionPipeline, student, count: int) -> dict[str, float]:
    return sd.judged(_pipeline(base, student), count, num_inference_steps=NUM_STEPS, guidance_scale=1.0)
