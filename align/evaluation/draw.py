"""How an arm of an evaluation draws: its noise (plain, the best of n, optimised), its adapters, its images."""

from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from align.evaluation.arms import BEST_OF, RENO, Arm
from align.evaluation.files import Chunk
from align.evaluation.plan import Plan
from align.hooks.drift import gaps, points
from align.interrupt import Interrupted
from align.noise.best_of import best_of
from align.noise.optimise import optimise
from align.noise.studio import Row, Studio
from align.policy.branches import Branch
from align.policy.mix import Mixer
from align.registry import REWARDS, RewardConfig, build
from rewards import CombineConfig, Composite
from samplers import generator

DRIFT_TIMES = 3


class Built:
    """Rewards, each loaded once, whoever asks for it."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._rewards: dict[str, Any] = {}

    def __call__(self, configs: dict[str, RewardConfig], combine: CombineConfig | None = None) -> Composite:
        rewards = {}
        for label, config in configs.items():
            key = config.model_dump_json()
            if key not in self._rewards:
                self._rewards[key] = build(REWARDS, config).to(self.accelerator.device)
            rewards[label] = self._rewards[key]
        return Composite(rewards, combine).to(self.accelerator.device)


class Easel:
    """One process's model with all adapters of the evaluation on it; loaded when something has to be drawn."""

    def __init__(self, plan: Plan, accelerator: Accelerator, built: Built):
        self.plan, self.accelerator, self.built = plan, accelerator, built

    @cached_property
    def studio(self) -> Studio:
        studio = Studio(self.plan.recipe, self.accelerator)
        if any(arm.noise for arm in (self.plan.cast.baseline, *self.plan.cast.arms)):
            studio.rewards = self.built(self.plan.recipe.rewards, self.plan.recipe.combine)
        return studio

    @cached_property
    def mixer(self) -> Mixer:
        model = self.studio.model
        component = next(name for name, module in model.components().items() if module is model.network)
        mixer = Mixer(model.network, component)
        for adapter in self.plan.cast.adapters:
            mixer.add(adapter)
        return mixer

    def noises(self, arm: Arm, chunk: Chunk, *, mine: bool) -> list[Tensor]:
        """The noise that each image of a chunk starts from: for each image of a prompt (P, C, h, w). Called by all
        processes, since noise is optimised by all of them together; the rest is left to the one whose chunk it is."""
        if not mine and arm.noise != RENO:
            return []
        self._set(arm)
        return [self._noise(arm, self._rows(chunk, number)) for number in range(self.plan.num_images)]

    @torch.no_grad()
    def draw(self, arm: Arm, chunk: Chunk, noises: list[Tensor]) -> Tensor:
        """(P, K, 3, H, W) in [0, 1], rounded to the 256 levels of a saved image: what is judged is what is seen."""
        self._set(arm)
        drawn = [self.studio.draw(self._rows(chunk, k), x_T) for k, x_T in enumerate(noises)]
        return (torch.stack(drawn, 1).float() * 255).round() / 255

    @torch.no_grad()
    def drift(self, arm: Arm, base: Arm, prompts: list[str]) -> float:
        """Mean |out - out_base|^2 on the base's own trajectories of these prompts; of the network, without guidance."""
        policy = self.studio.policy
        self.mixer.set(base.adapters)
        path = points(policy, self.plan.recipe.sampling, prompts, self.plan.recipe.train.seed, DRIFT_TIMES)
        self.mixer.set(arm.adapters)
        return float(gaps(policy, prompts, path).mean())

    def _set(self, arm: Arm) -> None:
        """The arm's adapters on the network, and those of guidance's other branch beside it."""
        self.mixer.set(arm.adapters)
        weights, mixer = arm.negative, self.mixer
        self.studio.policy.opposer = lambda role: None if weights is None else Branch(mixer, role, weights)
        self.studio.policy.base = lambda role: Branch(mixer, role, {})

    def _rows(self, chunk: Chunk, number: int) -> list[Row]:
        """Of image `number` of each prompt; the studio's seed is set to theirs."""
        stream = f"report/{number}" if number else "report"
        self.studio.seed = generator(self.plan.recipe.train.seed, stream, 0).initial_seed()
        return [Row(index, item.prompt) for index, item in zip(chunk.indices, chunk.items, strict=True)]

    def _noise(self, arm: Arm, rows: list[Row]) -> Tensor:
        if arm.noise == BEST_OF:
            return best_of(self.studio, rows, count=arm.count).x_T
        if arm.noise != RENO:
            return self.studio.noise(rows)
        train = self.plan.recipe.train.model_copy(update={"num_updates": arm.count})
        self.studio.recipe = self.plan.recipe.model_copy(update={"train": train})
        found = optimise(self.studio, rows, say=lambda text: None)
        if found.interrupted:
            raise Interrupted(found.interrupted)
        return found.noise.best
