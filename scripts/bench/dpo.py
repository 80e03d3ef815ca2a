"""What an update of Diffusion-DPO costs on cached pairs: against the sum of its parts, and encoding in the loop.

    python scripts/bench/dpo.py --batch 2
    python scripts/bench/dpo.py --model embedded:shapes-sd --batch 16 --size 32
    python scripts/bench/dpo.py --num-draws 1        the reference's errors from memory too

Everything is measured in one process and in turns: our update, its parts alone, the baseline; what else the machine
does then meets all of them alike. Ratios are of medians, with 95 % bootstrap intervals over the turns.

Parts: reading the batch, the reference's forward, the policy's forward and backward, the optimiser's step. The baseline
has the structure of diffusers' example script: images and prompts are encoded in each update, beside the same network,
LoRA, reference (the adapter off) and optimiser. It meets the same pairs, times and noise, and its loss must be ours
(the adapter is moved off the identity, so that losses say something, and then held there by a rate of 0).
Memory: all parameters alive in the process, against the model's own: a second network would show.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from align.data._workplace import Workplace
from align.data.preferences import PairBatch, Preferences, PreferencesConfig
from align.models.sd import SDConfig
from align.objectives._base import Parts
from align.objectives._preference import TimesConfig
from align.objectives.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig
from align.policy.lora import AdapterConfig
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.registry import MODELS, build
from align.training.update import update
from rewards._images import read_pil
from samplers import Rng, add_noise

BETA, SEED = 5000.0, 0
UNET, VAE = (64, 128, 256, 256), (32, 48, 96, 96)  # Stable Diffusion 1.5's proportions, its widths over 5 and over 4-5


class Bench:
    """One model, one adapter, one source of pairs, and each thing that is timed."""

    def __init__(self, model: str, pairs: Path, batch_size: int, num_draws: int | None):
        self.model = build(MODELS, SDConfig(checkpoint=model))
        adapter = Adapter(AdapterConfig(rank=8), self.model.network, list(self.model.lora_targets), seed=SEED)
        generator = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        self.policy, self.accelerator = Policy(self.model, adapter), Accelerator(cpu=True)
        self.source = Preferences(PreferencesConfig(pairs=str(pairs)), batch_size=batch_size, seed=SEED)
        painter = SimpleNamespace(policy=self.policy, sampling=None, accelerator=self.accelerator, seed=SEED)
        self.source.prepare(Workplace(painter, None, lambda _: None, print))
        config = DiffusionDPOConfig(beta=BETA, num_draws=num_draws)
        self.objective = DiffusionDPO(config, Parts(self.model, None, None, SEED))
        self.optimiser = torch.optim.AdamW(adapter.parameters(), lr=0.0)
        self.pixels = [[_pixels(picture.read()) for picture in pair[1:3]] for pair in self.source.pairs]

    def ours(self, batch: PairBatch) -> float:
        """The loss of one update, all of it."""
        settings: dict[str, Any] = {"seed": (SEED, batch.step), "max_grad_norm": 1.0}
        done = update(
            self.objective, self.policy, self.policy.adapter, self.optimiser, [batch], self.accelerator, **settings
        )
        return done.metrics["loss"]

    def baseline(self, batch: PairBatch) -> float:
        """The same update with everything encoded in it."""
        inputs = self._encoded(batch)
        train, reference = self.errors("train", *inputs), self.errors("reference", *inputs)
        logits = (reference[0] - reference[1]) - (train[0] - train[1])
        loss = -functional.logsigmoid(BETA / 2 * logits).mean()
        loss.backward()
        self.step()
        return float(loss.detach())

    def parts(self, batch: PairBatch) -> dict[str, Callable[[], Any]]:
        """What our update consists of, each by itself."""
        inputs = self._encoded(batch)
        steps: dict[str, Callable[[], Any]] = {"reading": batch.load}
        if self.objective.config.num_draws is None:
            steps["reference"] = lambda: self.errors("reference", *inputs)
        steps["policy"] = lambda: torch.cat(self.errors("train", *inputs)).mean().backward()
        return steps | {"optimiser": self.step}

    def errors(self, role: str, x_t: Tensor, t: Tensor, eps: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(role == "train"):
            error = (self.policy.role(role)(x_t, t, cond) - eps).square().flatten(1).mean(1)
        winner, loser = error.chunk(2)
        return winner, loser

    def step(self) -> None:
        self.policy.adapter.clip(1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()

    def memory(self) -> tuple[int, int]:
        """Bytes of (the model and its adapter, all parameters alive)."""
        own = sum(p.nbytes for module in self.model.components().values() for p in module.parameters())
        return own, sum(o.nbytes for o in gc.get_objects() if isinstance(o, nn.Parameter))

    @torch.no_grad()
    def _encoded(self, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor, Any]:
        """x_t (2 b, ...), t (2 b,), eps (2 b, ...) and the prompts' Cond, all encoded now."""
        cond = self.model.text.encode(batch.prompts, grad=True)  # grad: taken from no memory
        q = self.model.codec.encode(torch.stack([self.pixels[row][side] for side in (0, 1) for row in batch.rows]))
        mean, rng = q.mean[: len(batch)], Rng(SEED, self.objective._draws(batch) or batch.indices, batch.step)
        vae, eps = (torch.cat([rng.normal(stream, mean)] * 2) for stream in ("vae", "eps"))
        t = torch.cat([TimesConfig().draw(rng, self.model.schedule, mean)] * 2)
        return add_noise(self.model.schedule, q.sample(vae), eps, t), t, eps, cond.cat(cond)


def _pixels(data: bytes) -> Tensor:
    image = read_pil(data)
    found = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return found.view(image.height, image.width, 3).permute(2, 0, 1).float() / 255


def write_pairs(folder: Path, count: int, size: int) -> None:
    """Pairs of random images."""
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    generator = torch.Generator().manual_seed(SEED)
    lines = []
    for i in range(count):
        names = {side: f"images/{i}-{side}.png" for side in ("winner", "loser")}
        for name in names.values():
            data = torch.randint(256, (size, size, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(data.numpy()).save(folder / name)
        lines.append(json.dumps({"prompt": f"red cat {i}", **names}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")


def ratio(above: list[float], below: list[float]) -> str:
    """median(above) / median(below), with its bootstrap interval; turns are drawn together."""
    a, b = torch.tensor(above), torch.tensor(below)
    draws = torch.randint(len(a), (10_000, len(a)), generator=torch.Generator().manual_seed(0))
    ratios = a[draws].median(1).values / b[draws].median(1).values
    low, high = ratios.quantile(torch.tensor([0.025, 0.975])).tolist()
    return f"{statistics.median(above) / statistics.median(below):.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a diffusers folder or embedded:NAME; default: a scaled-down SD 1.5")
    parser.add_argument("--size", type=int, default=128, help="of the images; the default model's is 128")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--num-draws", type=int)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--cpu-time", action="store_true", help="the process's CPU time: on a machine that others use")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    times: dict[str, list[float]] = {}
    gaps: list[float] = []

    def timed(name: str, action: Callable[[], Any]) -> Any:
        started = clock()
        result = action()
        times.setdefault(name, []).append(clock() - started)
        return result

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pairs(folder / "pairs", 2 * arguments.batch, arguments.size)
        model = arguments.model
        if model is None:
            sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out
            from random_sd import build as build_random

            build_random(folder / "model", UNET, VAE, vae_layers=2)
            model = str(folder / "model")
        bench = Bench(model, folder / "pairs", arguments.batch, arguments.num_draws)
        batches = iter(bench.source)
        for _ in range(arguments.repeats + 2):
            batch = next(batches)
            loss = timed("update", lambda batch=batch: bench.ours(batch))
            for name, action in bench.parts(batch).items():
                timed(name, action)
            gaps.append(abs(timed("baseline", lambda batch=batch: bench.baseline(batch)) - loss))
        own, alive = bench.memory()
    times = {name: values[2:] for name, values in times.items()}
    parts = [name for name in times if name not in ("update", "baseline")]
    total = [float(sum(turn)) for turn in zip(*(times[name] for name in parts), strict=True)]
    print(f"\nB = {arguments.batch} pairs, {torch.get_num_threads()} threads; the two losses differ by {max(gaps):.1e}")
    for name in ["update", *parts, "baseline"]:
        print(f"  {name:<12} {statistics.median(times[name]):.4f} s")
    print(f"pairs a second                     {arguments.batch / statistics.median(times['update']):.2f}")
    print(f"update / sum of its parts          {ratio(times['update'], total)}")
    print(f"baseline / update                  {ratio(times['baseline'], times['update'])}")
    print(f"parameters alive / the model's own {alive / own:.3f}")


if __name__ == "__main__":
    main()
