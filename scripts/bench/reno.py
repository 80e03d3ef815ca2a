"""What an iteration of noise optimisation costs: against the sum of its parts, in batches, and against the way it was
published.

    python -P scripts/bench/reno.py
    python -P scripts/bench/reno.py --recipe reno/sd_turbo --set model.checkpoint=FOLDER --batches 1 2

All are measured in one process and in turns, so that whatever else the machine does meets all of them alike. Ratios are
of medians over the turns. Parts: the sampler's network calls, decoding and the rewards, each forward and backward.

The published structure: one image at a time; in each iteration the prompt goes through the model's text encoder and
through those of the rewards again, and every network call is checkpointed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from align.config import load_recipe
from align.noise.optimise import optimise
from align.noise.studio import Row, Studio
from align.objectives import _priors as priors
from align.sampling import rollout
from rewards._text import PromptCache
from samplers import Rng, full

PROMPT = "a red circle left of a blue square"
ROW = Row(0, PROMPT)


class Bench:
    """One studio, and each thing that is timed as a method without arguments."""

    def __init__(self, studio: Studio, now: Callable[[], float], iterations: int):
        self.studio, self.now, self.iterations = studio, now, iterations
        self.times: dict[str, list[float]] = {}

    def rows(self, batch: int) -> list[Row]:
        return [Row(i, PROMPT) for i in range(batch)]

    def timed(self, name: str, action: Callable[[], Any], *, share: int = 1) -> Any:
        self._wait()
        started = self.now()
        result = action()
        self._wait()
        self.times.setdefault(name, []).append((self.now() - started) / share)
        return result

    def _wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def ours(self, batch: int) -> None:
        run = lambda: optimise(self.studio, self.rows(batch), say=lambda _: None)  # noqa: E731
        self.timed(f"iteration, batch {batch}", run, share=self.iterations)

    def parts(self) -> None:
        """One row's network calls, decoding and rewards, each with its backward pass."""
        studio, sampling = self.studio, self.studio.recipe.sampling
        x_T = studio.noise(self.rows(1))
        grad = replace(full(), checkpoint=sampling.checkpoint_steps)

        def network() -> torch.Tensor:
            x = x_T.clone().requires_grad_()
            rng = Rng(0, [0])
            x0 = rollout(sampling, studio.model, studio.policy.role("train"), [PROMPT], rng, grad=grad, x_T=x).x0
            x0.backward(torch.ones_like(x0))
            return x0.detach()

        def decoding() -> torch.Tensor:
            pixels = studio.model.codec.decode(x0.clone().requires_grad_())
            pixels.backward(torch.ones_like(pixels))
            return pixels.detach()

        def rewards() -> None:
            studio.rewards.score(pixels.clone().requires_grad_(), [PROMPT]).total.sum().backward()

        x0 = self.timed("network", network)
        pixels = self.timed("decoding", decoding)
        self.timed("rewards", rewards)

    def published(self) -> None:
        self.timed("published", self.alone, share=self.iterations)

    def alone(self, row: Row = ROW) -> torch.Tensor:
        """The best image of one row, by the published structure, (1, 3, H, W)."""
        studio, prompt = self.studio, row.prompt
        config = studio.recipe
        x_T = torch.nn.Parameter(studio.noise([row]))
        optimiser = torch.optim.SGD([x_T], lr=config.optim.lr, momentum=0.9, nesterov=True)
        caches = [m for reward in studio.rewards.rewards.values() for m in _caches(reward)]
        encode = studio.model.text.encode
        best, kept = -torch.inf, None
        studio.model.text.encode = lambda prompts, grad=False: _encoded(encode, prompts)  # type: ignore[method-assign]
        try:
            for _ in range(self.iterations):
                for cache in caches:
                    cache._rows.clear()
                    cache.bytes = 0
                role = studio.policy.role("train")
                x0 = rollout(config.sampling, studio.model, role, [prompt], Rng(0, [0]), grad=full(), x_T=x_T).x0
                pixels = studio.model.codec.decode(x0)
                reward = studio.rewards.combine(studio.rewards(pixels, [prompt])).sum()
                loss = -reward - 0.01 * priors.radial(x_T).sum()
                if float(reward.detach()) > best:
                    best, kept = float(reward.detach()), pixels.detach().clone()
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_([x_T], 0.1)
                optimiser.step()
        finally:
            studio.model.text.encode = encode  # type: ignore[method-assign]
        assert kept is not None
        return kept


def _encoded(encode: Callable[..., Any], prompts: Any) -> Any:
    with torch.no_grad():
        return encode(prompts, grad=True)  # past the cache


def _caches(reward: Any) -> list[PromptCache]:
    """The prompt caches anywhere in a reward."""
    objects = [reward, *(v for v in vars(reward).values() if hasattr(v, "__dict__")), *reward.modules()]
    return list({id(v): v for o in objects for v in vars(o).values() if isinstance(v, PromptCache)}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="reno/shapes")
    parser.add_argument("--set", nargs="*", default=[], dest="changes")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cpu-time", action="store_true", help="the process's CPU time: on a machine that others use")
    arguments = parser.parse_args()
    changes = [f"train.num_updates={arguments.iterations}", "objective.num_starts=1", *arguments.changes]
    studio = Studio(load_recipe(arguments.recipe, changes))
    now = time.process_time if arguments.cpu_time else time.perf_counter
    bench = Bench(studio, now, arguments.iterations)
    for turn in range(arguments.repeats + 1):
        if turn == 1:
            bench.times.clear()  # the first turn warms up
        for batch in arguments.batches:
            bench.ours(batch)
        bench.parts()
        bench.published()
    median = {name: statistics.median(times) for name, times in bench.times.items()}
    print(f"{arguments.recipe} {' '.join(arguments.changes)}, {torch.get_num_threads()} threads")
    for name, value in median.items():
        print(f"  {name:<22} {value:.4f} s")
    one = f"iteration, batch {arguments.batches[0]}"
    if arguments.batches[0] == 1:
        parts = sum(median[name] for name in ("network", "decoding", "rewards"))
        print(f"iteration / sum of its parts, batch 1   {median[one] / parts:.3f}")
        print(f"published / iteration, batch 1          {median['published'] / median[one]:.3f}")
    for batch in arguments.batches:
        each = batch / median[f"iteration, batch {batch}"] / 50
        ratio = each * 50 * median[one] / arguments.batches[0]
        print(f"batch {batch:<3} {each:.3f} images a second of 50 iterations, {ratio:.2f} times those of {one[11:]}")
    if torch.cuda.is_available():
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
