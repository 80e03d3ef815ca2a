"""What a run needs on its device, phase by phase: the most that any of them holds is what must fit.

    encoding   network, autoencoder, rewards that stay, and the text encoders (off-loaded ones come for this)
    training   the same, adapter and optimiser, and what one micro-batch takes
    looking    samples, panels and the report: images are drawn without gradient, and more rewards judge them

On a GPU the runtime's own memory comes on top: CONTEXT is reckoned, not measured, and an allocator that cannot use all
gaps is allowed SLACK of the activations.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from align.config import Recipe
from align.plan.rehearsal import Rehearsal
from align.plan.rewards import Need, need

GIB = 2**30
CONTEXT = int(0.6 * GIB)
SLACK = 0.05
FLOATS = {"adamw": 4, "adamw8bit": 2.5, "sgd": 3}
"""Weight, gradient, one or two moments."""


@dataclass(frozen=True)
class Budget:
    """Bytes of a run on one device."""

    phases: Mapping[str, int]
    """Phase -> bytes at most."""
    weights: int
    """Of the model, on the device in training."""
    moments: int
    """Adapter, its gradient and the optimiser's moments."""
    activations: int
    """Of one micro-batch, with what its rewards need."""
    rewards: int
    """Weights of all rewards that stay on the device."""
    unknown: tuple[str, ...]
    """Rewards of which not even the card says the size."""

    @property
    def total(self) -> int:
        """The most of any phase."""
        return max(self.phases.values())

    @property
    def where(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: self.phases[phase])


def budget(recipe: Recipe, found: Rehearsal, *, gpu: bool) -> Budget:
    """What `recipe` needs, rehearsed as `found`; on a GPU with what its runtime takes."""
    text = {name for name in found.bytes if name not in ("unet", "transformer", "vae", "decoder")}
    encoders = sum(found.bytes[name] for name in text)
    network = sum(size for name, size in found.bytes.items() if name not in text)
    if gpu and getattr(recipe.model, "offload", None):
        network += found.gathered - next(size for name, size in found.bytes.items() if name in ("unet", "transformer"))
    moved = gpu and (getattr(recipe.model, "offload_text", False) or getattr(recipe.model, "text_on_cpu", False))
    weights = network if moved else network + encoders
    moments = int(4 * (found.trainable * FLOATS[recipe.optim.algorithm] + found.held))
    watched = {label: _weighed(config) for label, config in _of_hooks(recipe)}
    judges = {label: _weighed(config) for label, config in _of_report(recipe)}
    needed = dict(found.rewards) or {label: _weighed(config) for label, config in recipe.rewards.items()}
    rewards = sum(n.weights for n in (*needed.values(), *watched.values()) if not (gpu and n.offload))
    base = CONTEXT if gpu else 0
    phases = {"training": weights + rewards + moments + found.peak}
    if gpu and getattr(recipe.model, "text_on_cpu", False):
        encoders = 0
    if moved:
        phases["encoding prompts"] = network + encoders + rewards + moments
    drawn = getattr(recipe.data, "rollout_size", None)
    if drawn:
        rows = min(drawn, recipe.train.batch_size)
        phases["drawing what is learnt from"] = weights + rewards + moments + _at_once(recipe, found, rows)
    looked = weights + moments + _drawing(recipe, found)
    spiked = max((n.weights for n in (*watched.values(), *judges.values()) if n.offload), default=0)
    phases["samples and report"] = looked + rewards + sum(n.weights for n in judges.values() if not n.offload) + spiked
    slack = SLACK if gpu else 0
    phases = {phase: int(base + size + slack * max(size - weights - rewards, 0)) for phase, size in phases.items()}
    unknown = tuple(label for label, n in (needed | watched | judges).items() if not n.known and not n.weights)
    return Budget(phases, weights, moments, found.peak, rewards, unknown)


def hours(recipe: Recipe, found: Rehearsal, tflops: float) -> tuple[float, float]:
    """(PFLOP of an update, hours of all updates) at a rate in TFLOP/s; hooks and the report are not in it."""
    update = found.flops * found.total / max(found.rows, 1) + found.drawing * found.row[1]
    return update / 1e15, update * recipe.train.num_updates / (tflops * 1e12) / 3600


def _drawing(recipe: Recipe, found: Rehearsal) -> int:
    """Bytes of drawing without gradient: the rows that are drawn at once, guided or not, or decoded."""
    size = recipe.sampling.image_size or (0, 0)
    area = size[0] * size[1] or found.pixels
    asked = recipe.evaluate.batch_size if recipe.evaluate else None
    rows = asked or max(1, min(64, 2**22 // max(area, 1)))
    return _at_once(recipe, found, rows)


def _at_once(recipe: Recipe, found: Rehearsal, rows: int) -> int:
    """Bytes of drawing so many rows without gradient."""
    size = recipe.sampling.image_size or (0, 0)
    area = size[0] * size[1] or found.pixels
    guided = 1 if recipe.sampling.num_rows == recipe.sampling.num_calls else 2
    chunk = getattr(recipe.model, "decode_chunk", None) or max(1, min(8, 2**20 // max(area, 1)))
    return max(rows * guided * found.row[0], min(rows, chunk) * found.decoded)


def _of_hooks(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    for label, hook in recipe.hooks.items():
        yield from ((f"{label}/{name}", config) for name, config in (getattr(hook, "rewards", None) or {}).items())


def _of_report(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Rewards that are built for the report alone."""
    watched = recipe.evaluate.rewards if recipe.evaluate else {}
    yield from ((f"report/{name}", config) for name, config in watched.items() if name not in recipe.rewards)


def _weighed(config: Any) -> Need:
    return need(config, (64, 64), 1)
