"""Published training loops, each as a process that trains for as long as it is told: the other side of peers.py.

    peer_loops.py alignprop SETTINGS.json     TRL 0.11's own AlignPropTrainer, under a Python that has it
    peer_loops.py dpo SETTINGS.json           the structure of diffusers' Diffusion-DPO example script

A line on standard input is a number of CPU seconds to train for; after them the adapter is written to OUTPUT/TURN in
diffusers' form, and a JSON line says how many updates there have been. The example script is no package: its structure
is written down here. Each update reads the pictures, encodes them and the prompts, and calls the reference by switching
the adapter off.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def serve(step: Callable[[int], None], network: Any, output: Path) -> None:
    """Trains when asked, and writes what the adapter is then."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    updates = turn = 0
    for line in sys.stdin:
        started = time.process_time()
        while time.process_time() - started < float(line):
            step(updates)
            updates += 1
        spent = time.process_time() - started
        turn += 1
        folder = output / str(turn)
        folder.mkdir(parents=True, exist_ok=True)
        state = {f"unet.{k}": v.detach().contiguous() for k, v in get_peft_model_state_dict(network).items()}
        save_file(state, folder / "pytorch_lora_weights.safetensors")
        print(json.dumps({"updates": updates, "spent": spent, "folder": str(folder)}), flush=True)


def alignprop(settings: dict[str, Any]) -> None:
    from trl import (  # type: ignore[import-not-found]  # of an environment of its own
        AlignPropConfig,
        AlignPropTrainer,
        DefaultDDPOStableDiffusionPipeline,
    )

    pick = _pick(settings["pick"])
    pipeline = DefaultDDPOStableDiffusionPipeline(settings["model"], use_lora=True)
    steps = settings["num_steps"]
    config = AlignPropConfig(
        num_epochs=1,
        mixed_precision="no",
        seed=settings["seed"],
        sample_num_steps=steps,
        sample_eta=0.0,
        sample_guidance_scale=settings["guidance_scale"],
        train_batch_size=settings["batch_size"],
        truncated_backprop_rand=False,
        truncated_backprop_timestep=steps - settings["last_k"],
        train_learning_rate=settings["lr"],
        train_adam_weight_decay=settings["weight_decay"],
        log_with=None,
        save_freq=10**9,
        log_image_freq=10**9,
        allow_tf32=False,
    )
    draw = random.Random(settings["seed"])

    def reward(images: Tensor, prompts: Any, metadata: Any) -> tuple[Tensor, dict[str, Any]]:
        return pick(images.float(), list(prompts)), {}  # images are in [0, 1] already

    trainer = AlignPropTrainer(config, reward, lambda: (draw.choice(settings["prompts"]), {}), pipeline)
    serve(lambda update: trainer.step(0, update), pipeline.unet, Path(settings["output"]))


def _pick(folder: str) -> Callable[[Tensor, list[str]], Tensor]:
    """The reward `clip` in its form `logit`, (B, 3, 32, 32) in [0, 1] -> (B,), by what the old transformers has."""
    from transformers import CLIPModel, CLIPTokenizer

    from rewards._preprocess import quantise

    clip: Any = CLIPModel.from_pretrained(folder).float().eval().requires_grad_(False)
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder)
    read = json.loads((Path(folder) / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(read[f"image_{name}"]).view(1, 3, 1, 1) for name in ("mean", "std"))

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        ids = tokenizer(prompts, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
        words = functional.normalize(clip.get_text_features(**ids), dim=-1)
        seen = functional.normalize(clip.get_image_features(pixel_values=(quantise(images) - mean) / std), dim=-1)
        return clip.logit_scale.exp() * (seen * words).sum(-1)

    return score


def dpo(settings: dict[str, Any]) -> None:
    import diffusers as typed
    from peft import LoraConfig
    from torchvision.transforms import functional as pictures
    from transformers import CLIPTextModel, CLIPTokenizer

    diffusers: Any = typed
    torch.manual_seed(settings["seed"])
    place: dict[str, Any] = {"pretrained_model_name_or_path": settings["model"]}
    unet: Any = diffusers.UNet2DConditionModel.from_pretrained(**place, subfolder="unet").float()
    vae: Any = diffusers.AutoencoderKL.from_pretrained(**place, subfolder="vae").float()
    text: Any = CLIPTextModel.from_pretrained(settings["model"], subfolder="text_encoder").float()
    tokenizer: Any = CLIPTokenizer.from_pretrained(settings["model"], subfolder="tokenizer")
    scheduler: Any = diffusers.DDPMScheduler.from_pretrained(settings["model"], subfolder="scheduler")
    for module in (unet, vae, text):
        module.requires_grad_(False)
    rank = settings["rank"]
    targets = settings["targets"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets))
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=settings["lr"], weight_decay=settings["weight_decay"])
    draw, beta = random.Random(settings["seed"]), settings["beta"]

    def read(path: str) -> Tensor:
        from PIL import Image

        return pictures.to_tensor(Image.open(path).convert("RGB")) * 2 - 1

    def update(number: int) -> None:
        pairs = draw.sample(settings["pairs"], settings["batch_size"])
        pixels = torch.stack([read(path) for key in (1, 2) for path in (pair[key] for pair in pairs)])
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
            words = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
            ids = tokenizer([pair[0] for pair in pairs], max_length=tokenizer.model_max_length, **words).input_ids
            cond = text(ids)[0].repeat(2, 1, 1)
        noise = torch.randn_like(latents).chunk(2)[0].repeat(2, 1, 1, 1)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (len(pairs),)).repeat(2)
        noisy = scheduler.add_noise(latents, noise, t)
        errors = _errors(unet(noisy, t, cond).sample, noise)
        unet.disable_adapters()
        with torch.no_grad():
            before = _errors(unet(noisy, t, cond).sample, noise)
        unet.enable_adapters()
        loss = -functional.logsigmoid(-0.5 * beta * (errors - before)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()

    serve(update, unet, Path(settings["output"]))


def _errors(out: Tensor, wanted: Tensor) -> Tensor:
    """Winner's error less the loser's, a pair."""
    each = (out - wanted).square().mean((1, 2, 3))
    winner, loser = each.chunk(2)
    return winner - loser


if __name__ == "__main__":
    {"alignprop": alignprop, "dpo": dpo}[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
