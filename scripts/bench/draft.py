"""What an update of DRaFT costs: against the sum of its parts, and against the way peers run the same update.

    python scripts/bench/draft.py --steps 20 --last-k 1 --batch 2
    python scripts/bench/draft.py --model embedded:shapes-sd --steps 10 --batch 16 --guidance 3
    python scripts/bench/draft.py --model embedded:shapes-sd --batch 16 --guidance 2 --levers '{"reuse": 4}'
    python scripts/bench/draft.py --model FOLDER --peer-command "peer/bin/python peer.py FOLDER --T 20 --K 1 --batch 2"

Everything is measured in one process and in turns: an update of the real trainer, its parts alone, the baseline; what
else the machine does then meets all of them alike. Ratios are of medians, with 95 % bootstrap intervals over the turns.
The peer's command must print "median_s NUMBER"; it is run in turns with ours too.
--levers is the recipe's sampling.levers, of our update alone: parts and baseline are in full. With reuse, a turn is the
mean of the updates that share one run of the steps before the window.

Parts: the calls without gradient; the K calls with it (forward, recomputation, backward); decoding and the reward, each
forward and backward. The baseline has the structure of TRL 0.11's AlignProp: every call runs under grad and is
checkpointed, early outputs are detached; prompts are encoded at each update; the decoder keeps its activations.
"""

import argparse
import copy
import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

import align
from align.hooks._base import Hook, State, Surroundings
from align.registry import ComponentConfig
from align.sampling import SamplingConfig
from samplers import sample

PROMPT = "a red cat"


class MeasureConfig(ComponentConfig):
    """What the recipe says, for the hook to do the same by hand."""

    sampling: SamplingConfig
    batch_size: int
    clock: Literal["perf_counter", "process_time"] = "perf_counter"


class Measure(Hook):
    """Between two updates of the trainer: its parts by themselves, and the baseline's update."""

    Config = MeasureConfig

    def __init__(self, config: MeasureConfig, around: Surroundings):
        self.config = config
        self.output = around.output
        self.now = getattr(time, config.clock)
        self.policy = around.painter.policy
        self.model = self.policy.model
        self.rewards = around.build_rewards(align.load_recipe(around.recipe).rewards)
        self.prompts = [PROMPT] * config.batch_size
        self.times: dict[str, list[float]] = {}
        self.baseline = self._baseline()
        self.left = 0.0

    def start(self, state: State) -> None:
        self.left = self.now()

    def after_update(self, state: State) -> None:
        self._note("update", self.now() - self.left)
        self._parts()
        self._timed("baseline", self.baseline)
        self.policy.adapter.network.zero_grad()
        self.left = self.now()

    def finish(self, state: State) -> None:
        (self.output / "times.json").write_text(json.dumps(self.times))

    def _note(self, name: str, seconds: float) -> None:
        self.times.setdefault(name, []).append(seconds)

    def _timed(self, name: str, action: Callable[[], Any]) -> Any:
        started = self.now()
        result = action()
        self._note(name, self.now() - started)
        return result

    def _parts(self) -> None:
        sampling, model = self.config.sampling, self.model
        cond, uncond = model.text.encode(self.prompts), model.text.encode([""])
        denoiser = sampling.guided(model.denoiser(), uncond)
        times = sampling.grid(model).times
        first = len(times) - 1 - sampling.last_k
        x = torch.randn(len(self.prompts), *model.latent_shape())

        def free() -> None:
            with torch.no_grad():
                for t in times[:first]:
                    denoiser(x, t, cond)

        def kept() -> None:
            for i, t in enumerate(times[first:-1]):
                x_t = x.clone().requires_grad_(i > 0)  # nothing leads back from the first kept step
                if sampling.checkpoint_steps:
                    out = checkpoint(denoiser, x_t, t, cond, use_reentrant=False)
                else:
                    out = denoiser(x_t, t, cond)
                out.backward(x)

        def decoded() -> torch.Tensor:
            pixels = model.codec.decode(x.clone().requires_grad_())
            pixels.backward(torch.ones_like(pixels))
            return pixels.detach()

        self._timed("free calls", free)
        self._timed("kept calls", kept)
        pixels = self._timed("decoding", decoded)
        self._timed("reward", lambda: self._reward(pixels.requires_grad_()).backward())

    def _reward(self, pixels: torch.Tensor) -> torch.Tensor:
        return -self.rewards.score(pixels, self.prompts).total.mean()

    def _baseline(self) -> Callable[[], None]:
        model, sampling = self.model, self.config.sampling
        network = copy.deepcopy(model.network)  # adapter and all; a copy is not compiled
        trained = [p for p in network.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=1e-4)
        grid = sampling.grid(model)
        late = set(grid.times[len(grid.times) - 1 - sampling.last_k : -1].tolist())

        class Checkpointed:
            schedule, kind = model.schedule, model.kind

            def __call__(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
                out = checkpoint(model.predict, network, x_t, t, cond, use_reentrant=False)
                return out if float(t) in late else out.detach()

        def update() -> None:
            optimiser.zero_grad()
            cond = model.text.encode(self.prompts, grad=True)
            denoiser = sampling.guided(Checkpointed(), model.text.encode([""], grad=True))
            x = torch.randn(len(self.prompts), *model.latent_shape())
            x0 = sample(denoiser, x, grid, cond, grad=_stored()).x0
            z = x0 / model.codec.scale + model.codec.shift
            pixels = (model.codec.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
            self._reward(pixels).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()

        return update


def _stored() -> Any:
    import samplers

    return samplers.GradPolicy(samplers.full().keep, checkpoint=False)


def measure(arguments: argparse.Namespace, model: str, folder: Path) -> dict[str, list[float]]:
    """{name: seconds of each turn} of one process's turns, the first two of them dropped."""
    sampling = {
        "num_steps": arguments.steps,
        "last_k": arguments.last_k,
        "guidance_scale": arguments.guidance,
        "checkpoint_steps": not arguments.no_checkpoint,
        "levers": json.loads(arguments.levers) or None,
    }
    reuse = (sampling["levers"] or {}).get("reuse", 1)
    hook = {
        "name": f"{Path(__file__).resolve()}:Measure",
        "sampling": sampling,
        "batch_size": arguments.batch,
        "clock": "process_time" if arguments.cpu_time else "perf_counter",
    }
    recipe = {
        "model": {"name": "sd", "checkpoint": model},
        "objective": {"name": "draft"},
        "data": {"name": "prompts", "prompts": [PROMPT]},
        "rewards": {arguments.reward: json.loads(arguments.reward_settings)},
        "sampling": sampling,
        "train": {
            "num_updates": (arguments.repeats + 2) * reuse,
            "batch_size": arguments.batch,
            "checkpoint_every": 10**6,
            "compile": {"prefix": "prefix", "true": True}.get(arguments.compile, False),
        },
        "hooks": {"measure": hook},
        "output": str(folder),
    }
    align.train(recipe, resume="never")
    times = json.loads((folder / "times.json").read_text())
    return {name: turns(values, reuse)[2:] for name, values in times.items()}


def turns(values: list[float], reuse: int) -> list[float]:
    """Seconds of every update -> of an update in each turn: the mean of `reuse` in a row."""
    return [statistics.fmean(values[i : i + reuse]) for i in range(0, len(values), reuse)]


def ratio(above: list[float], below: list[float]) -> str:
    """median(above) / median(below), with its bootstrap interval; turns are drawn together."""
    a, b = torch.tensor(above), torch.tensor(below)
    draws = torch.randint(len(a), (10_000, len(a)), generator=torch.Generator().manual_seed(0))
    ratios = a[draws].median(1).values / b[draws].median(1).values
    low, high = ratios.quantile(torch.tensor([0.025, 0.975])).tolist()
    return f"{statistics.median(above) / statistics.median(below):.3f} [{low:.3f}, {high:.3f}]"


def peer(command: str, rounds: int, ours: Callable[[], float]) -> tuple[list[float], list[float]]:
    """(the peer's medians, ours), in turns."""
    theirs, mine = [], []
    for _ in range(rounds):
        done = subprocess.run(shlex.split(command), capture_output=True, text=True)
        found = re.search(r"median_s ([\d.]+)", done.stdout)
        if found is None:
            raise SystemExit(f"the peer's command printed no median_s:\n{done.stdout}\n{done.stderr[-2000:]}")
        theirs.append(float(found[1]))
        mine.append(ours())
    return theirs, mine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a diffusers folder or embedded:NAME; default: random weights, 17.7M UNet")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--last-k", type=int, default=1)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--reward", default="brightness")
    parser.add_argument("--reward-settings", default="{}", help="as JSON")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--no-checkpoint", action="store_true", help="keep the activations of the K calls")
    parser.add_argument("--compile", nargs="?", const="true", choices=("true", "prefix"), help="train.compile")
    parser.add_argument("--levers", default="{}", help="sampling.levers, as JSON")
    parser.add_argument("--cpu-time", action="store_true", help="the process's CPU time: on a machine that others use")
    parser.add_argument("--peer-command")
    parser.add_argument("--peer-rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model is None:
            sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out
            from random_sd import build

            build(Path(folder) / "model", (64, 128, 256), (32, 64, 64))
            model = str(Path(folder) / "model")
        times = measure(arguments, model, Path(folder) / "run")
        parts = ["free calls", "kept calls", "decoding", "reward"]
        total = [float(sum(turn)) for turn in zip(*(times[part] for part in parts), strict=True)]
        print(
            f"\nN = {arguments.steps}, K = {arguments.last_k}, B = {arguments.batch}, {torch.get_num_threads()} threads"
        )
        for name in ["update", *parts, "baseline"]:
            print(f"  {name:<12} {statistics.median(times[name]):.4f} s")
        print(f"update / sum of its parts        {ratio(times['update'], total)}")
        print(f"baseline / update                {ratio(times['baseline'], times['update'])}")
        if arguments.peer_command:
            arguments.repeats = 6

            def ours() -> float:
                return statistics.median(measure(arguments, model, Path(folder) / "run")["update"])

            theirs, mine = peer(arguments.peer_command, arguments.peer_rounds, ours)
            print(f"peer / update                    {ratio(theirs, mine)}")


if __name__ == "__main__":
    main()
