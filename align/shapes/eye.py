"""The eye: a network that reads a picture as densities of objects, and soft checks of a caption on what it reads.

On a grid of 16x16 cells, 33 channels: shape x colour, shape x size, all. Each object is a Gaussian of mass 1, so the
sum of a channel is a soft count and its centroid a soft place, both differentiable in the pixels. The checks are the
judge's, made soft, with T the mass of all objects, m the mass in the channel that is asked for, n the number asked:

    number    1 / (1 + (2 (T - n))^2)
    shape, colour, size    min(m / n, 1)
    position  sigmoid((along - max(0.58 across, 3)) / 1.5 px) min(m_1, 1) min(m_2, 1)
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from align.shapes.captions import SIZES, Requirement, parse
from align.shapes.judge import Seen
from align.shapes.scene import COLOURS, SHAPES, SIZE, Object

GRID, SPREAD = 16, 1.6  # cells on a side; standard deviation of an object's density, pixels
NAMES = tuple(COLOURS)
SIZED = len(SHAPES) * len(NAMES)  # first channel of shape x size
CHANNELS = SIZED + len(SHAPES) * len(SIZES) + 1
_AXES = {"left of": (1.0, 0.0), "right of": (-1.0, 0.0), "above": (0.0, 1.0), "below": (0.0, -1.0)}


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.before, self.between = (nn.GroupNorm(8, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.between(self.first(F.silu(self.before(x))))))


class Eye(nn.Module):
    """Pictures (B, 3, 32, 32) in [0, 1] -> densities (B, CHANNELS, GRID, GRID), not negative."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.width = width
        self.fine = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), _Residual(width))
        self.middle = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), _Residual(2 * width), _Residual(2 * width)
        )
        self.coarse = nn.Sequential(
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), _Residual(2 * width), _Residual(2 * width)
        )
        self.join = nn.Sequential(nn.Conv2d(4 * width, 2 * width, 1), _Residual(2 * width), _Residual(2 * width))
        self.out = nn.Conv2d(2 * width, CHANNELS, 1)

    def forward(self, images: Tensor) -> Tensor:
        middle = self.middle(self.fine(images * 2 - 1))
        coarse = F.interpolate(self.coarse(middle), scale_factor=2.0)
        return F.softplus(self.out(F.silu(self.join(torch.cat([middle, coarse], 1)))) - 4)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors (fp16)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"architecture": "Eye", "width": self.width}, indent=1) + "\n")
        save_file(
            {k: p.detach().half().contiguous() for k, p in self.state_dict().items()}, folder / "model.safetensors"
        )


def load(folder: str | Path) -> Eye:
    """The network of a folder that `save` wrote, fp32, in eval mode."""
    settings = json.loads((Path(folder) / "config.json").read_text())
    network = Eye(settings["width"])
    network.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return network.eval()


def target(objects: Sequence[Object | Seen]) -> Tensor:
    """The densities (CHANNELS, GRID, GRID) of known objects; what has no shape counts in the last channel alone."""
    out = torch.zeros(CHANNELS, GRID, GRID)
    axis = (torch.arange(GRID) + 0.5) * SIZE / GRID
    for o in objects:
        mass = torch.exp(-((axis - o.x) ** 2 + (axis[:, None] - o.y) ** 2) / (2 * SPREAD**2))
        mass = mass / mass.sum()
        out[-1] += mass
        if o.shape is not None:
            k = SHAPES.index(o.shape)
            out[SIZED + len(SIZES) * k + SIZES.index(o.size)] += mass
            if o.colour is not None:
                out[len(NAMES) * k + NAMES.index(o.colour)] += mass
    return out


def _asked(wanted: Sequence[Requirement]) -> tuple[Tensor, Tensor, Tensor]:
    """Channels (B, 2, 3, CHANNELS) that shape, colour and size of each phrase sum over; counts (B, 2) of the phrases;
    and how many objects (B, 2, 3) the caption asks of each. Channels and numbers are 0 where nothing is asked."""
    channels = torch.zeros(len(wanted), 2, 3, CHANNELS)
    counts, number = torch.zeros(len(wanted), 2), torch.zeros(len(wanted), 2, 3)
    for b, requirement in enumerate(wanted):
        for i, item in enumerate(requirement.items):
            k = SHAPES.index(item.shape)
            counts[b, i] = item.count
            channels[b, i, 0, len(NAMES) * k : len(NAMES) * (k + 1)] = 1
            number[b, i, 0] = sum(other.count for other in requirement.items if other.shape == item.shape)
            if item.colour is not None:
                channels[b, i, 1, len(NAMES) * k + NAMES.index(item.colour)] = 1
                number[b, i, 1] = item.count
            if item.size is not None:
                channels[b, i, 2, SIZED + len(SIZES) * k + SIZES.index(item.size)] = 1
                number[b, i, 2] = item.count
    return channels, counts, number


def _offset(densities: Tensor, channels: Tensor) -> Tensor:
    """(B, 2): from the centroid of the first phrase's shape to the second's, pixels to the right and down."""
    shape = torch.einsum("bic,bcyx->biyx", channels[:, :, 0], densities)
    axis = (torch.arange(GRID, device=shape.device) + 0.5) * SIZE / GRID
    mass = shape.sum((2, 3)) + 0.05
    centre = torch.stack([(shape.sum(2) * axis).sum(-1) / mass, (shape.sum(3) * axis).sum(-1) / mass], -1)
    return centre[:, 1] - centre[:, 0]


def checks(densities: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Soft checks (B, 8) in [0, 1], their weights (the judge's number of checks behind each, 0: not asked), and whether
    each holds when counted: number, then shape, colour and size of the first phrase and of the second, then position.

    Raises:
        ValueError: a caption outside the grammar.
    """
    wanted = [parse(c) for c in captions]
    channels, counts, number = (t.to(densities.device) for t in _asked(wanted))
    masses = densities.sum((2, 3))
    total = masses[:, -1] - counts.sum(1)
    found = torch.einsum("bijc,bc->bij", channels, masses)
    share = (found / number.clamp(min=1)).clamp(max=1)
    axes = torch.tensor([_AXES.get(r.relation or "", (0.0, 0.0)) for r in wanted], device=densities.device)
    offset = _offset(densities, channels)
    along, across = (offset * axes).sum(1), (offset * axes.flip(1)).sum(1).abs()
    margin = along - torch.maximum(0.58 * across, torch.full_like(across, 3.0))
    related = axes.abs().sum(1)
    present = found[:, :, 0].clamp(max=1).prod(1)
    soft = torch.cat(
        [(1 / (1 + 4 * total**2))[:, None], share.flatten(1), (torch.sigmoid(margin / 1.5) * present)[:, None]], 1
    )
    asked = (number > 0) * counts[:, :, None]
    weight = torch.cat([torch.ones_like(related)[:, None], asked.flatten(1), related[:, None]], 1)
    near = (found > number - 0.5).flatten(1)
    hard = torch.cat([(total.abs() < 0.5)[:, None], near, ((margin > 0) & (present > 0.5))[:, None]], 1)
    return soft, weight, hard
