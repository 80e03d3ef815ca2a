"""Noise as what is trained: the x_T of B images, row by row, and the batches that carry it.

Every row is a problem of its own. Gradients are summed, so that no row is divided by the number of others; each row has
its own norm for clipping; the optimisers here act number by number, so its state is its own too; and the best iterate
is kept by row. Over processes the rows are shared out, not averaged: a process's optimiser moves the rows that it has
computed, and `gather` brings the best of all together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import Tensor, nn

Span = tuple[int, int]


class Noise:
    """x_T of B rows, (B, C, h, w) standard normal at the start, in float32 or wider.

    `best` (B, C, h, w) is each row's iterate of the highest reward, `best_reward` (B,) that reward, `best_step` (B,)
    the number of updates before it, and `first_reward` (B,) the reward of the start. Rewards are of the image alone,
    without the regulariser.
    """

    rowwise = True

    def __init__(self, x_T: Tensor):
        self.x_T = nn.Parameter(x_T.detach().clone())
        self.best = x_T.detach().clone()
        self.best_reward = torch.full((len(x_T),), -torch.inf, dtype=x_T.dtype, device=x_T.device)
        self.first_reward = torch.full_like(self.best_reward, torch.nan)
        self.best_step = torch.zeros(len(x_T), dtype=torch.long, device=x_T.device)
        self._held: tuple[Tensor, Tensor] | None = None  # which rows are to stay, and where they are
        self.frames: list[Tensor] | None = None
        """Per row the images of its iterates, (iterates, 3, H, W) bytes on the CPU, if asked for by `keep_frames`."""
        self.rewards: list[list[float]] = [[] for _ in range(len(x_T))]
        """Per row the rewards of its iterates, the start first."""

    def __len__(self) -> int:
        return len(self.x_T)

    def keep_frames(self) -> None:
        self.frames = [torch.empty(0, dtype=torch.uint8)] * len(self)

    def parameters(self) -> list[nn.Parameter]:
        return [self.x_T]

    def prepare(self, accelerator: Any) -> None:
        self.x_T.data = self.x_T.data.to(accelerator.device)
        for name in ("best", "best_reward", "best_step", "first_reward"):
            setattr(self, name, getattr(self, name).to(accelerator.device))

    def train(self, mode: bool = True) -> None:
        """Nothing here is random."""

    @torch.no_grad()
    def clip(self, max_norm: float | None) -> Tensor:
        """Limits each row's gradient to `max_norm`; -> the mean over this process's rows of the norms before that, ().

        A row whose gradient is not finite stays where it is, and the others go on.
        """
        gradient = self.x_T.grad
        if gradient is None:  # a process without rows
            return self.best_reward.new_zeros(())
        norms = gradient.flatten(1).norm(dim=1)
        finite = norms.isfinite()
        gradient[~finite] = 0
        self._held = None if bool(finite.all()) else ((~finite).nonzero()[:, 0], self.x_T.detach()[~finite].clone())
        if max_norm is not None:
            scale = (max_norm / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1)
            gradient *= torch.where(finite, scale, 0)[:, None, None, None]
        moved = norms[finite & (norms > 0)]
        return moved.mean() if len(moved) else norms.new_zeros(())

    @torch.no_grad()
    def settle(self) -> None:
        """After the optimiser's step: momentum and decay move a row without a gradient too; those that stay go back."""
        if self._held is not None:
            rows, values = self._held
            self.x_T[rows] = values

    @torch.no_grad()
    def observe(self, span: Span, step: int, rewards: Tensor, pixels: Callable[[], Tensor]) -> None:
        """The rewards (b,) of rows span[0]:span[1] after `step` updates; `pixels` gives their images (b, 3, H, W), and
        is asked only where frames are kept."""
        part = slice(*span)
        if step == 0:
            self.first_reward[part] = rewards.to(self.first_reward)
        for row, reward in zip(range(*span), rewards.tolist(), strict=True):
            self.rewards[row].append(reward)
        better = rewards.to(self.best_reward) > self.best_reward[part]
        shaped = better[:, None, None, None]
        self.best[part] = torch.where(shaped, self.x_T.detach()[part], self.best[part])
        self.best_reward[part] = torch.where(better, rewards.to(self.best_reward), self.best_reward[part])
        self.best_step[part] = torch.where(better, step, self.best_step[part])
        if self.frames is not None:
            seen = (pixels().detach().float() * 255).round().byte().cpu()
            for row, image in zip(range(*span), seen, strict=True):
                self.frames[row] = torch.cat([self.frames[row].view(-1, *image.shape), image[None]])

    def metrics(self) -> dict[str, float]:
        """Means over the rows that this process has seen: their best and first reward, and the noise's length."""
        seen = ~self.first_reward.isnan()
        best, first = self.best_reward[seen].mean(), self.first_reward[seen].mean()
        return {
            "best": float(best),
            "first": float(first),
            "norm": float(self.x_T.detach().flatten(1).norm(dim=1).mean()),
        }

    def gather(self, accelerator: Any) -> None:
        """Brings the best of all processes' rows to every process."""
        if accelerator.num_processes == 1:
            return
        names = ("best", "best_reward", "best_step", "first_reward")
        mine = {name: getattr(self, name).cpu() for name in names}, self.frames, self.rewards
        for held, frames, rewards in gather_object([mine]):
            theirs = ~held["first_reward"].isnan()
            for name in names:
                getattr(self, name)[theirs.to(self.best.device)] = held[name][theirs].to(self.best.device)
            for row in theirs.nonzero().flatten().tolist():
                self.rewards[row] = rewards[row]
                if self.frames is not None:
                    self.frames[row] = frames[row]

    def state_dict(self) -> dict[str, Tensor]:
        names = ("best", "best_reward", "best_step", "first_reward")
        return {"x_T": self.x_T.detach(), **{name: getattr(self, name) for name in names}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self.state_dict().items():
            value.copy_(state[name])

    def export(self, path: Path) -> None:
        """noise.safetensors in the folder `path`: the best of every row, "x_T" (B, C, h, w)."""
        save_file({"x_T": self.best.cpu().contiguous()}, path / "noise.safetensors")


@dataclass(frozen=True)
class NoiseBatch:
    """Rows of an update that optimises noise; `indices` are their global sample numbers, `step` the update's."""

    noise: Noise
    prompts: tuple[str, ...]
    indices: tuple[int, ...]
    step: int
    span: Span
    """First row of the noise, and one past the last."""

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> "NoiseBatch":
        start, stop, _ = rows.indices(len(self))
        span = (self.span[0] + start, self.span[0] + stop)
        return NoiseBatch(self.noise, self.prompts[rows], self.indices[rows], self.step, span)

    @property
    def x_T(self) -> Tensor:
        """(b, C, h, w), with the graph to the parameter."""
        return self.noise.x_T[slice(*self.span)]

    def observe(self, rewards: Tensor, pixels: Callable[[], Tensor]) -> None:
        self.noise.observe(self.span, self.step, rewards, pixels)


class Repeated:
    """A batch source: the same prompts with the same noise, update after update."""

    def __init__(self, noise: Noise, prompts: Sequence[str], indices: Sequence[int]):
        self.noise, self.prompts, self.indices = noise, tuple(prompts), tuple(indices)
        self.step = 0

    def __iter__(self) -> Iterator[NoiseBatch]:
        while True:
            batch = NoiseBatch(self.noise, self.prompts, self.indices, self.step, (0, len(self.prompts)))
            self.step += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
