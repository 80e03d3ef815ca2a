"""How well the two capable models denoise the same pictures with their captions, at equal noise: which of the levels a
model is weak at says what to change. Layout is settled where there is much noise, shapes and edges where there is less.

    E |x^ - x|^2 at sigma = noise / signal: x^ = x_t - t v of the flow, t = sigma / (1 + sigma), and
    (x_t - sqrt(1 - a) eps) / sqrt(a) of the base, a = 1 / (1 + sigma^2)
"""

import torch

from scripts.pretrain import flow, sd
from scripts.pretrain.common import DEVICE, generator
from scripts.pretrain.pool import Pool

TIMES = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9)
PART = 128


@torch.no_grad()
def errors(count: int = 1024, seed: int = 999) -> dict[float, tuple[float, float]]:
    """Time of the flow -> mean squared errors of (stage sd, stage flow) on `count` scenes that no stage trains on."""
    g = generator(seed, 39)
    x, words, _ = Pool(seed, window=1).batch(0, count, g)
    noise = torch.randn(x.shape, generator=g).to(DEVICE)
    base, rectified = sd.load().to(DEVICE), flow.load().to(DEVICE)
    signal = sd.scheduler().alphas_cumprod
    ratios = ((1 - signal) / signal).sqrt()
    found = {}
    for wanted in TIMES:
        k = int((ratios - wanted / (1 - wanted)).abs().argmin())
        a, t, sums = signal[k], float(ratios[k] / (1 + ratios[k])), torch.zeros(2)
        for clean, drawn, ids in zip(x.split(PART), noise.split(PART), words.split(PART), strict=True):
            every = torch.full((len(ids),), k, device=DEVICE)
            noisy = a.sqrt() * clean + (1 - a).sqrt() * drawn
            eps = base.unet(noisy, every, base.text_encoder(ids).last_hidden_state).sample
            sums[0] += ((noisy - (1 - a).sqrt() * eps) / a.sqrt() - clean).pow(2).mean((1, 2, 3)).sum().cpu()
            states, pooled, _ = flow.encode(rectified.text_encoder, ids)
            mixed = torch.lerp(clean, drawn, t)
            v = flow.velocity(
                rectified.transformer, mixed, torch.full_like(every, t, dtype=torch.float), states, pooled
            )
            sums[1] += (mixed - t * v - clean).pow(2).mean((1, 2, 3)).sum().cpu()
        found[round(t, 2)] = tuple((sums / count).tolist())
    return found


def main() -> None:
    """Print the table."""
    print("| time of the flow | sd | flow | flow / sd |\n|---|---|---|---|")
    for t, (base, rectified) in errors().items():
        print(f"| {t:.2f} | {base:.4f} | {rectified:.4f} | {rectified / base:.2f} |")
