"""One DRaFT-K and one Diffusion-DPO update of a network at its published size, with random weights.

    python -P scripts/bench/full_size.py stabilityai/stable-diffusion-3.5-medium --peak-tflops 989
    python -P scripts/bench/full_size.py stabilityai/stable-diffusion-xl-base-1.0 --reward hpsv2 --last-k 1
    python -P scripts/bench/full_size.py stable-diffusion-v1-5/stable-diffusion-v1-5 --device cpu --dtype float32 \\
        --size 64 64 --network '{"block_out_channels": [32, 32, 32, 32]}'

Prints one JSON line a method: seconds (median over the turns after the first), peak memory, FLOPs and, given the
device's matrix rate, the fraction of it. The reward is the mean pixel or a named one with random weights; prompts are
encoded already, as the cache has them. `--network` and `--vae` override the published configs: then it is no benchmark
of that model, but runs anywhere.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
import random_rewards  # type: ignore[import-not-found]

from align.models._quantize import METHODS
from align.models._real_size import example_cond, real_size
from align.policy.lora import AdapterConfig
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.registry import MODELS
from align.sampling import SamplingConfig
from samplers import add_noise, broadcast, cfg, last, sample, target

BETA = 5000.0
PROMPT = "a green bicycle leaning against a low brick wall in the rain"


class Bench:
    """The parts of an update."""

    def __init__(self, arguments: argparse.Namespace):
        family, published = _find(arguments.checkpoint)
        published = dataclasses.replace(
            published,
            network={**published.network, **arguments.network},
            vae={**published.vae, **arguments.vae},
        )
        dtype = getattr(torch, arguments.dtype)
        self.device = arguments.device
        quantize = arguments.quantize
        self.model = model = real_size(family, published, device=self.device, dtype=dtype, quantize=quantize)
        self.adapter = Adapter(AdapterConfig(rank=16), model.network, list(model.lora_targets), seed=0)
        model.to(self.device)
        if arguments.checkpoint_blocks:
            model.network.enable_gradient_checkpointing()  # type: ignore[operator]
        settings = {"dtype": arguments.dtype, "device": self.device}
        self.reward = random_rewards.build(arguments.reward, **settings) if arguments.reward else None
        self.last_k = arguments.last_k
        self.policy = Policy(model, self.adapter)
        self.optimiser = torch.optim.AdamW(self.adapter.parameters(), lr=1e-5)
        self.cond = example_cond(published, device=self.device)
        size = tuple(arguments.size) if arguments.size else None
        chosen = {**published.sampling, "num_steps": arguments.num_steps, "image_size": size}
        if chosen["step_rule"] == "euler_ancestral":
            chosen["step_rule"] = "euler"  # draws no noise
        self.sampling = SamplingConfig(**chosen)
        self.shape = (1, *model.latent_shape(size))
        self.dtype = dtype

    def draft(self) -> torch.Tensor:
        """Minus the reward of a sample, with the gradient of the last K steps."""
        grid = self.sampling.grid(self.model)
        denoiser = cfg(self.policy.role("train"), self.cond, self.sampling.guidance_scale)
        x_T = torch.randn(self.shape, device=self.device) * grid.init_scale
        x0 = sample(denoiser, x_T, grid, self.cond, step=self.sampling.step(), grad=last(self.last_k)).x0
        pixels = self.model.codec.decode(x0)
        return -pixels.mean() if self.reward is None else -self.reward(pixels.float(), [PROMPT]).float().mean()

    def diffusion_dpo(self) -> torch.Tensor:
        """Of a pair of latents: winner and loser in one batch, the reference without gradient."""
        x0, eps = torch.randn(2, *self.shape[1:], device=self.device), torch.randn(self.shape, device=self.device)
        t = torch.rand(1, device=self.device).expand(2)
        alpha_t, sigma_t = (broadcast(c, x0) for c in self.model.schedule(t))
        wanted = target(x0, eps.expand_as(x0), alpha_t, sigma_t, self.model.kind)
        x_t, cond = add_noise(self.model.schedule, x0, eps.expand_as(x0), t), self.cond.repeat(2)
        with torch.no_grad():
            reference = (self.policy.role("reference")(x_t, t, cond) - wanted).square().flatten(1).mean(1)
        error = (self.policy.role("train")(x_t, t, cond) - wanted).square().flatten(1).mean(1) - reference
        return -logsigmoid(-BETA / 2 * (error[0] - error[1]))

    def update(self, loss: Callable[[], torch.Tensor]) -> None:
        loss().backward()
        self.optimiser.step()
        self.optimiser.zero_grad()

    def measure(self, loss: Callable[[], torch.Tensor], turns: int) -> dict[str, Any]:
        """FLOPs are counted on the first update, which is not timed."""
        cuda = self.device.startswith("cuda")
        with FlopCounterMode(display=False) as counter:
            self.update(loss)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(turns):
            start = time.perf_counter()
            self.update(loss)
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        found = {"seconds": statistics.median(seconds), "tflop": counter.get_total_flops() / 1e12}
        if cuda:
            found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return found


def _find(checkpoint: str) -> tuple[Any, Any]:
    known = {p.checkpoint: (f, p) for f in map(MODELS.get, MODELS.names()) for p in getattr(f, "published", ())}
    if checkpoint not in known:
        raise SystemExit(f"{checkpoint} is not one of: {', '.join(known)}")
    return known[checkpoint]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantize", choices=METHODS, help="keep the network's linear weights so")
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--last-k", type=int, default=1)
    parser.add_argument("--reward", help="a learned reward's name; default: the mean pixel")
    parser.add_argument("--checkpoint-blocks", action="store_true", help="recompute each block of the network")
    parser.add_argument("--methods", nargs="+", default=["draft", "diffusion_dpo"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, help="height and width in pixels; default: the native ones")
    parser.add_argument("--network", type=json.loads, default={}, help="JSON over the network's config")
    parser.add_argument("--vae", type=json.loads, default={}, help="JSON over the autoencoder's config")
    parser.add_argument("--peak-tflops", type=float, help="the device's dense matrix rate at this dtype")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    for name in arguments.methods:
        found = bench.measure(getattr(bench, name), arguments.turns)
        if arguments.peak_tflops:
            found["share_of_peak"] = found["tflop"] / found["seconds"] / arguments.peak_tflops
        drawn = {"last_k": arguments.last_k, "reward": arguments.reward or "mean pixel"} if name == "draft" else {}
        size = [side * bench.model.codec.factor for side in bench.shape[2:]]
        said = {"checkpoint": arguments.checkpoint, "method": name, "size": size, "kept": arguments.quantize, **drawn}
        print(json.dumps({**said, **found}), flush=True)


if __name__ == "__main__":
    main()
