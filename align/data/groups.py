"""On-policy groups: several images of each of a rollout's prompts, drawn by the policy, rewarded, and compared.

    row of an image = prompt's draw * G + copy;  its noise from (seed, stream, row): any cut over processes is the same
    A = how much better an image is than the others of its group (align/data/_advantages.py)

A group is one draw of a prompt, never its text. Rewards need no gradient: each image is asked for once, without graph,
in batches. What is kept is what the objective wants (`Wanted`): the states and log-probabilities of a window of
stochastic steps, or the finished latents alone. An update trains on `train.batch_size` images, whole groups, each with
all of its rows; the rollout's other images are served in the updates that follow, drawn by a policy that has moved.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from align.data import _group_window
from align.data._advantages import Normalise, Running, advantages, without_contrast
from align.data._group_draw import Plan, Times, draw
from align.data._group_rows import GroupBatch, Rollout
from align.data._readable import scoring
from align.data._wanted import Wanted
from align.data._workplace import Workplace
from align.data.prompts import Prompts, PromptsConfig, problems
from align.models._base import device_of
from align.processes import gather_object
from align.registry import ComponentConfig
from samplers import Window, generator


class WindowConfig(ComponentConfig):
    """Which steps are stochastic and trained, where an objective trains steps (samplers/windows.py)."""

    start: Literal["all", "first_half", "random", "sliding"] = "all"
    """all that have a density; or `size` consecutive ones, within the first half of the steps or anywhere, drawn for
    each rollout; or sliding from noise to data."""
    size: int = Field(default=2, ge=1)
    """How many steps it has; not looked at by all."""
    stride: int = Field(default=1, ge=1)
    """sliding: how many steps it moves on"""
    every: int = Field(default=25, ge=1)
    """sliding: ... after so many rollouts."""


class GroupsConfig(ComponentConfig):
    """Prompts, images a prompt, and how rewards become advantages."""

    name: Literal["groups"] = "groups"
    prompts: list[str] | str
    """As in data.prompts of other recipes."""
    count: int | None = Field(default=None, ge=1)
    """Use only the first `count` of them."""
    num_prompts: int | None = Field(default=None, ge=1)
    """Prompts of one rollout. Default: as many as one update trains on, train.batch_size / group_size."""
    group_size: int = Field(default=8, ge=1)
    """G, images of a prompt (Flow-GRPO: 24)."""
    normalise: Normalise = "global"
    """By which standard deviation a reward is divided: of all rows, of the group, or `running` (DDPO)."""
    clip: float = Field(default=5.0, gt=0)
    """Largest advantage."""
    skip_flat: bool = False
    """Leave out the rows of groups whose images were all rewarded alike: they have A = 0, and cost as much. Not with
    normalise: running, by which they have not."""
    window: WindowConfig = WindowConfig()
    """The steps that are stochastic and trained, for objectives that train steps."""
    train_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the window's steps (TDM-R1: of all) that an image is trained on, drawn for each (DanceGRPO: 0.6)."""
    shared_noise: bool = False
    """Start a group from one x_T (DanceGRPO); its images then differ by their steps' noise alone."""
    reward_on: Literal["x0", "x0_hat"] = "x0"
    """x0_hat: reward what the last network call predicts (DanceGRPO), free of noise that flow_sde leaves."""
    rollout_size: int = Field(default=16, ge=1)
    """Images drawn at once on one process. In half precision, where several updates share a rollout (num_prompts), set
    it to train.micro_batch_size: last bits differ with the number of rows, and `clip` counts them as the policy's."""
    overlap: bool = False
    """Ask for rewards while the next images are drawn; for rewards that wait for others, such as http."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from problems(self.prompts, ".prompts", self.count, scoring(recipe))
        if not recipe.get("rewards", True):
            yield "rewards", "are missing: groups are compared by them. Add one, such as `rewards: {clip: {}}`."
        combine = recipe.get("combine")
        if combine is not None and combine.normalise != "none":
            yield "combine.normalise", "is not looked at: groups normalise each reward themselves. Remove it."
        train = recipe.get("train")
        if train is not None and train.batch_size % self.group_size:
            yield (
                "train.batch_size",
                f"{train.batch_size} is no multiple of data.group_size={self.group_size}: an update trains on whole "
                "groups. Make it one.",
            )
        images = self.group_size * (self.num_prompts or 1)
        if train is not None and self.num_prompts and (images % train.batch_size or images < train.batch_size):
            yield (
                ".num_prompts",
                f"{self.num_prompts} of {self.group_size} images each are {images}, which {train.batch_size} a batch "
                "do not divide. Make num_prompts * group_size a multiple of train.batch_size.",
            )
        if self.group_size == 1 and self.normalise != "running":
            yield (
                ".group_size",
                f"is 1: an image is measured against the others of its group, by normalise={self.normalise}, and has "
                "none. Set it to 2 or more, or normalise to running, which remembers a prompt's rewards.",
            )
        if self.skip_flat and self.normalise == "running":
            yield (
                ".skip_flat",
                "leaves out groups whose images were rewarded alike, and by normalise=running these teach too: they "
                "are measured by the prompt's past. Set one of the two otherwise.",
            )
        yield from _group_window.conflicts(self.window, recipe.get("sampling"))
        if getattr(recipe.get("adapter"), "dropout", 0):
            yield "adapter.dropout", "must be 0: rollout and training must see the same network. Remove it."


class Groups:
    """The source; `prepare` gives it the policy, the rewards and what the objective wants."""

    Config = GroupsConfig

    def __init__(self, config: GroupsConfig, *, batch_size: int, seed: int):
        self.config, self.batch_size, self.seed = config, batch_size, seed
        num_prompts = config.num_prompts or max(1, batch_size // config.group_size)
        self.source = Prompts(
            PromptsConfig(prompts=config.prompts, count=config.count), batch_size=num_prompts, seed=seed
        )
        self.window = Window(config.window.start, config.window.size, config.window.stride, config.window.every)
        self.running = Running()
        self.step = self.number = self.position = 0
        self.pending: tuple[Rollout, torch.Tensor] | None = None
        self.times, self.drawing = Times(0.0, 0.0), 0
        self.wanted = Wanted()
        self._around: Workplace | None = None
        self._roll: Callable[[Plan], Rollout] | None = None

    def all_prompts(self) -> list[str]:
        """All that it draws images for."""
        return self.source.all_prompts()

    def prepare(self, around: Workplace) -> None:
        """Remembers whom to ask."""
        self._around, self.wanted = around, around.wanted or Wanted()
        self._possible = _group_window.possible(self.window, self.wanted, around.sampling, around.model)
        self._roll = self._gathered

    def rehearse(self, around: Workplace) -> None:
        """In place of `prepare`, for a plan: images without data, on the model's own device."""
        model, sampling = around.model, around.sampling
        self.wanted = around.wanted or Wanted()
        self._possible = _group_window.possible(self.window, self.wanted, sampling, model)
        device, shape = device_of(model.network), model.latent_shape(sampling.image_size)
        self.drawing = self.batch_size * sampling.num_rows

        def roll(plan: Plan) -> Rollout:
            n, steps = len(plan.prompts), sampling.num_steps if self.wanted.states else sum(plan.steps)
            x = torch.empty(n, steps + 1, *shape, device=device)
            times = torch.linspace(0.8, 0.2, steps + 1, dtype=torch.float64)
            scores = {"": torch.arange(n).double()}
            logs = torch.zeros(n, steps)
            return Rollout(list(plan.prompts), plan.groups, plan.indices, scores, x[:, 0], x, logs, x[:, :-1], times)

        self._roll = roll

    def __iter__(self) -> Iterator[GroupBatch]:
        while True:
            fresh = self.pending is None
            if self.pending is None:
                found = self.drawn(self.number)
                self.pending = found, self._advantages(found)
            batch = self._batch(*self.pending, fresh=fresh)
            self.step, self.position = self.step + 1, self.position + self.batch_size
            if batch.used_up:
                self.pending, self.position, self.number = None, 0, self.number + 1
            yield batch

    def drawn(self, number: int) -> Rollout:
        """Rollout number `number`, by the policy as it is now; the same on every process."""
        assert self._roll is not None, "prepare was not called"
        self.number = number
        return self._roll(self._plan())

    def _plan(self) -> Plan:
        """What this rollout draws: decided by (seed, number of the rollout) alone."""
        self.source.step = self.number
        drawn, size = next(iter(self.source)), self.config.group_size
        groups = torch.tensor(drawn.indices).repeat_interleave(size)
        indices = groups * size + torch.arange(size).repeat(len(drawn))
        prompts = [prompt for prompt in drawn.prompts for _ in range(size)]
        steps: list[bool] = []
        if self.wanted.transitions:
            steps = self.window.decide(self._possible, self.number, generator(self.seed, "window", self.number))
        return Plan(prompts, groups, indices, self.number, steps)

    def _gathered(self, plan: Plan) -> Rollout:
        """The rollout of all processes, the same on each, in the order of the rows."""
        around, config, n = self._around, self.config, len(plan.prompts)
        assert around is not None
        rank, count = around.accelerator.process_index, around.accelerator.num_processes
        rows = range(rank * n // count, (rank + 1) * n // count)
        parts: list[Rollout] = []
        if rows:
            settings = {"size": config.rollout_size, "shared_noise": config.shared_noise, "overlap": config.overlap}
            part, self.times = draw(plan, rows, around, self.wanted, on_x0_hat=config.reward_on == "x0_hat", **settings)
            parts = [part]
        if count > 1:
            parts = [Rollout(*part) for part in gather_object([tuple(part) for part in parts])]
        return Rollout.together(parts)

    def _advantages(self, found: Rollout) -> torch.Tensor:
        weights = dict.fromkeys(found.scores, 1.0) if self._around is None else self._around.rewards.weights
        return advantages(
            found.scores,
            weights,
            found.groups,
            normalise=self.config.normalise,
            clip=self.config.clip,
            running=self.running,
            prompts=found.prompts,
        )

    def _batch(self, found: Rollout, gains: torch.Tensor, *, fresh: bool) -> GroupBatch:
        """The next update's images, each with its rows side by side."""
        images = torch.arange(self.position, min(self.position + self.batch_size, len(found.prompts)))
        flat = without_contrast({k: v[images] for k, v in found.scores.items()}, found.groups[images])
        trained = images[~flat] if self.config.skip_flat and not flat.all() else images
        slots = self._slots(found, trained)
        said = {f"reward/{label}": r[images].double().mean() for label, r in found.scores.items()}
        said |= {"flat": flat.double().mean(), "advantage": gains[images].abs().mean()}
        said |= {"queries": torch.tensor(float((self.number + 1) * len(found.prompts)))}
        if fresh:
            said |= {f"{name}_seconds": torch.tensor(value) for name, value in self.times._asdict().items()}
        rows, used_up = trained.repeat_interleave(slots.shape[1]), self.position + self.batch_size >= len(found.prompts)
        return GroupBatch(found, gains, rows, slots.flatten(), self.step, self.number, fresh, said, used_up)

    def _slots(self, found: Rollout, images: torch.Tensor) -> torch.Tensor:
        """(len(images), rows of an image): which steps of the window, or which looks, an image is trained on."""
        if not (self.wanted.transitions or self.wanted.states):
            return torch.arange(self.wanted.draws).expand(len(images), -1)
        steps = found.states.shape[1] - 1
        count = max(1, round(self.config.train_fraction * steps))
        if count == steps:
            return torch.arange(steps).expand(len(images), -1)
        drawn = [
            torch.randperm(steps, generator=generator(self.seed, "trained", int(found.indices[i])))[:count].sort()[0]
            for i in images
        ]
        return torch.stack(drawn)

    def state_dict(self) -> dict[str, Any]:
        """With the images that are still to be served: they cannot be drawn again once the policy has moved."""
        state: dict[str, Any] = {"step": self.step, "number": self.number, "position": self.position}
        state |= {"running": self.running.state_dict(), "pending": None}
        if self.pending is not None:
            state["pending"] = {"rollout": self.pending[0]._asdict(), "advantages": self.pending[1]}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.number, self.position = state["step"], state["number"], state["position"]
        self.running.load_state_dict(state["running"])
        held = state["pending"]
        self.pending = None if held is None else (Rollout(**held["rollout"]), held["advantages"])
