"""Stage vae: the autoencoder, 32x32 pixels to 8x8x4 latents."""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from align.shapes.judge import judge_reading, read
from align.shapes.scene import render_batch
from scripts.pretrain.common import DEVICE, WORK, draw, generator, parameters, record, train


def build() -> AutoencoderKL:
    """The untrained network."""
    return AutoencoderKL(
        block_out_channels=(32, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=32,
    )


def load() -> AutoencoderKL:
    """The trained network, fp32, frozen."""
    return AutoencoderKL.from_pretrained(WORK / "out" / "vae").requires_grad_(False).eval()


def main(steps: int = 2400, batch: int = 32, seed: int = 0) -> None:
    torch.manual_seed(seed)
    vae = build().to(DEVICE)

    def loss(step: int) -> torch.Tensor:
        _, scenes = draw(batch, seed, step)
        x = render_batch(scenes).to(DEVICE) * 2 - 1
        posterior = vae.encode(x).latent_dist
        out = vae.decode(posterior.sample(generator(seed, step))).sample
        coloured = ((x.amax(1) - x.amin(1)) > 0.15).float()
        weight = 1 + 4 * F.max_pool2d(coloured, 3, 1, 1)[:, None]  # objects and their edges, not the plain ground
        error = (out - x).abs() + 2 * (out - x).pow(2)
        return (weight * error).mean() + 1e-4 * posterior.kl().mean() / 256

    figures = train("vae", {"vae": vae}, loss, steps=steps, lr=2e-3, ema=0.998)
    vae.to("cpu")
    with torch.no_grad():
        _, scenes = draw(1024, seed, 1 << 40)
        x = render_batch(scenes) * 2 - 1
        mean = torch.cat([vae.encode(c).latent_dist.mean for c in x.split(128)])
        vae.register_to_config(scaling_factor=round(float(1 / mean.std()), 5))
        wanted, scenes = draw(2000, seed, 1 << 41)
        x = render_batch(scenes) * 2 - 1
        out = torch.cat([vae.decode(vae.encode(c).latent_dist.mean).sample for c in x.split(128)]).clamp(-1, 1)
    right = sum(judge_reading(r, w).strict for r, w in zip(read(out / 2 + 0.5), wanted, strict=True)) / len(wanted)
    psnr = -10 * torch.log10(((out - x) / 2).pow(2).mean()).item()
    vae.save_pretrained(WORK / "out" / "vae")
    record("vae", figures | {"parameters": parameters([vae]), "psnr": round(psnr, 2), "judge": round(right, 4)})
