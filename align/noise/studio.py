"""A recipe's model, rewards and judges, ready to draw an image from given noise, to score it, and to count the cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from align import processes
from align.config import Recipe
from align.policy.roles import Policy
from align.registry import MODELS, REWARDS, build
from align.sampling import rollout
from rewards import CombineConfig, Composite
from samplers import Rng


class Row(NamedTuple):
    """One image to be made: its global number, from which with the seed its noise is drawn, and its prompt."""

    index: int
    prompt: str


class Drawn(NamedTuple):
    """Images (B, 3, H, W) in [0, 1] and their total rewards (B,)."""

    pixels: Tensor
    total: Tensor


@dataclass
class Cost:
    """Passes in rows: through the network (counted by the policy), and images decoded and scored."""

    network: int = 0
    free: int = 0
    """Images drawn without gradient."""
    graded: int = 0
    """Images drawn with gradient: the decoder computes 1 + 1 (recomputed) + 2 (backward), each reward 1 + 2."""

    def forward_equivalents(self, num_rewards: int) -> int:
        """Of network, decoder and rewards together."""
        return self.network + self.free * (1 + num_rewards) + self.graded * (4 + 3 * num_rewards)


class Studio:
    """One process's model with nothing added to it, and what judges its images; loaded when it is first asked for."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator | None = None):
        self.recipe = recipe
        self.accelerator = accelerator or processes.join(recipe.train)
        self.seed = recipe.train.seed
        self.model = build(MODELS, recipe.model).to(self.accelerator.device)
        self.policy = Policy(self.model, autocast=lambda: recipe.train.autocast(self.accelerator.device))
        self.num_rewards = len(recipe.rewards)

    @cached_property
    def rewards(self) -> Composite:
        """What is maximised."""
        return self._composite(self.recipe.rewards, self.recipe.combine)

    @cached_property
    def judges(self) -> dict[str, Composite]:
        """What only looks on."""
        watched = self.recipe.evaluate.rewards if self.recipe.evaluate else {}
        return {k: self._composite({k: v}) for k, v in watched.items() if k not in self.recipe.rewards}

    def _composite(self, configs: Mapping[str, Any], combine: CombineConfig | None = None) -> Composite:
        rewards = {label: build(REWARDS, config) for label, config in configs.items()}
        return Composite(rewards, combine).to(self.accelerator.device)

    def mine(self, rows: Sequence[Row]) -> slice:
        """This process's part of a batch, as the trainer cuts it."""
        rank, size = self.accelerator.process_index, self.accelerator.num_processes
        return slice(rank * len(rows) // size, (rank + 1) * len(rows) // size)

    def noise(self, rows: Sequence[Row], candidate: int = 0) -> Tensor:
        """Standard normal x_T, (B, C, h, w); candidate 0 is of the stream "x_T", as in the first update of a
        training of the same seed. `align sample` has a stream of its own, so its images start elsewhere."""
        like = torch.empty(len(rows), *self.model.latent_shape(self.recipe.sampling.image_size))
        stream = f"x_T/{candidate}" if candidate else "x_T"
        return Rng(self.seed, [row.index for row in rows]).normal(stream, like).to(self.accelerator.device)

    @torch.no_grad()
    def draw(self, rows: Sequence[Row], x_T: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], by the recipe's sampler."""
        prompts, rng = [row.prompt for row in rows], Rng(self.seed, [row.index for row in rows])
        x0 = rollout(self.recipe.sampling, self.model, self.policy.role("train"), prompts, rng, x_T=x_T).x0
        return self.model.codec.decode(x0)

    @torch.no_grad()
    def candidates(self, rows: Sequence[Row], x_T: Tensor) -> Drawn:
        """Images and what the rewards say of them."""
        pixels = self.draw(rows, x_T)
        total = self.rewards.score(pixels, [row.prompt for row in rows]).total
        return Drawn(pixels, total)

    def finished(self, row: Row, x_T: Tensor) -> tuple[Tensor, dict[str, float]]:
        """One row alone, as a file will show it: (3, H, W) bytes, and the scores of those very bytes.

        Alone, so that drawing it again from the stored noise gives the same image to the last bit.
        """
        levels = self.levels(row, x_T)
        return levels, self.scores(row, levels.to(x_T.device) / 255)

    def levels(self, row: Row, x_T: Tensor) -> Tensor:
        """x_T (C, h, w) -> the image, (3, H, W) bytes on the CPU; not counted."""
        with self.policy.uncounted():
            return (self.draw([row], x_T[None])[0].float() * 255).round().byte().cpu()

    @torch.no_grad()
    def scores(self, row: Row, pixels: Tensor) -> dict[str, float]:
        """{"total": ..., label: ...} of the rewards, and of those judges that can read the prompt."""
        terms = self.rewards(pixels[None], [row.prompt])
        said = {"total": float(self.rewards.combine(terms)), **{label: float(v) for label, v in terms.items()}}
        for label, judge in self.judges.items():
            try:
                said[label] = float(judge(pixels[None], [row.prompt])[label])
            except ValueError:  # the shapes judge, asked about a prompt that is no caption of its world
                continue
        return said

    def cost(self, before: Cost | None = None) -> Cost:
        """The network's passes so far, less those of `before`."""
        return Cost(network=self.policy.calls.forward_equivalents - (before.network if before else 0))
