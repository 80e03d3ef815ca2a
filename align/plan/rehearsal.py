"""A recipe rehearsed without weights: one micro-batch of its objective on the meta device.

The networks are built there (networks.py), the objective runs forward and backward as it would in training, the policy
counts the calls, and every storage that is made or freed on the way is added up (meter.py): the peak is what memory
must hold beside the weights. A mean over pixels stands in for the rewards; what they need is added where they score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from align.config import Recipe
from align.data._base import micro_batches
from align.data._workplace import Workplace
from align.errors import UserError
from align.models._base import Dtypes
from align.models._quantize import size
from align.objectives._base import Parts
from align.plan.meter import Once, Peak, fused_attention
from align.plan.networks import model_of
from align.plan.rewards import Need, needs
from align.policy.cast import MAIN, gather, of_guidance
from align.policy.painter import Painter
from align.policy.roles import Calls, Policy
from align.policy.trainable import Adapter, Trainable
from align.registry import DATA, OBJECTIVES, build
from align.sharding import gathered
from align.training.movers import alone, moves
from rewards._composite import Scored
from rewards._latents import Undecoded


@dataclass(frozen=True)
class Rehearsal:
    """One micro-batch, rehearsed."""

    parameters: dict[str, int]
    """Component of the pipeline -> number of parameters."""
    weights: int
    """Bytes of all components."""
    trainable: int
    """Number of trained parameters."""
    held: int
    """Numbers of adapters that are kept beside them: snapshots, frozen ones."""
    rows: int
    """Samples in the micro-batch."""
    total: int
    """Samples of the whole update; where a source draws images itself, steps of them or looks at them."""
    drawing: int
    """Rows of network calls, without gradient, in which the source draws what an update trains on."""
    calls: Calls
    peak: int
    """Bytes beside weights and optimiser, at most, during forward and backward."""
    bytes: dict[str, int] = field(default_factory=dict)
    """Component of the pipeline -> bytes of its weights."""
    gathered: int = 0
    """Bytes of the network's weights that are on the device at most with model.offload."""
    flops: float = 0.0
    """Of the micro-batch."""
    row: tuple[int, float] = (0, 0.0)
    """Bytes and FLOPs of one row of a network call without gradient."""
    decoded: int = 0
    """Bytes of decoding one image without gradient, at most."""
    pixels: int = 0
    """Of an image, height times width."""
    rewards: dict[str, Need] = field(default_factory=dict)
    """What the rewards that are trained on need."""


def plain_dtypes(dtypes: Dtypes, *, gpu: bool | None = None) -> Dtypes:
    """`dtypes` with nothing left to choose: as on a GPU that has bfloat16, or as on this machine (None)."""
    if gpu is None:
        names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        return Dtypes.model_validate({part: names[dtype] for part, dtype in dtypes.resolve().items()})
    fast = "bf16" if gpu else "fp32"
    chosen = {"network": fast, "text": fast, "vae": "fp32"}
    return Dtypes.model_validate({k: chosen[k] if v == "auto" else v for k, v in dtypes.model_dump().items()})


def rehearse(
    recipe: Recipe, *, num_processes: int = 1, model: Any = None, with_rewards: bool = False, gpu: bool | None = None
) -> Rehearsal:
    """The first micro-batch of the recipe on the meta device; `model` is its model there, if that is made already.

    `with_rewards`: what they need is in the peak. `gpu`: whether `auto` precisions are a GPU's; None: this machine's.
    Raises UserError for an objective that is not rehearsed.
    """
    if why := getattr(recipe.objective, "unplanned", ""):
        raise UserError(f"objective: {why}.")
    if recipe.sampling.roles is not None:  # as if the trained network drew all: the most that a hand-over can cost
        recipe = recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update={"roles": None})})
    if model is None:
        model = model_of(recipe.model, plain_dtypes(getattr(recipe.model, "dtype", Dtypes()), gpu=gpu))
    sizes = {name: size(module) for name, module in model.components().items()}
    parameters, weights = {name: number for name, (number, _) in sizes.items()}, sum(n for _, n in sizes.values())
    most = gathered(model.network, lambda module: size(module)[1])
    policy, objective, trained, held = _parts(recipe, model)
    update, drawing = _update(recipe, policy, objective)
    batch = micro_batches(update, recipe.train.micro_batch_size, num_processes=num_processes)[0]
    if with_rewards and recipe.rewards and hasattr(objective, "rewards"):
        pixels = recipe.sampling.image_size or model.image_size
        objective.rewards.needs = needs(recipe.rewards, pixels, len(batch))
    if (small := getattr(objective, "decoder", None)) is not None:
        parameters["decoder"], sizes["decoder"] = size(small.vae)[0], size(small.vae)
        weights += sizes["decoder"][1]
    modules = [*model.components().values(), *([small.vae] if small is not None else [])]
    existing = [p for m in modules for p in (*m.state_dict(keep_vars=True).values(), *m.buffers())]
    meter = Peak(existing)
    once = Once(model.network, meter, lambda: policy.calls.forward + policy.calls.recompute)
    with meter, fused_attention(meter), once.installed():
        if hasattr(objective, "rewards") and objective.rewards is not None:
            objective.rewards.meter = meter
        round_ = moves(objective, recipe.train.num_updates - 1)  # the first ones may leave some out
        for move in round_:
            with alone(trained[move.trainable], trained.values()):
                loss = move.objective(policy, batch)
                with policy.backward():
                    (loss.per_sample if loss.kept is None else loss.per_sample + loss.kept).sum().backward()
        peak, flops = meter.peak, meter.flops
        counted = policy.calls
        row, decoded = once.a_row, _decoding(model, recipe, meter)
    ahead = len(batch) * sum(getattr(move.objective, "ahead", 0) for move in round_)
    counted.forward, flops = counted.forward + ahead, flops + ahead * row.flops
    trainable = sum(p.numel() for one in trained.values() for p in one.parameters())
    numbers = len(batch), len(update), drawing
    return Rehearsal(
        parameters,
        weights,
        trainable,
        held,
        *numbers,
        counted,
        peak,
        bytes={name: n for name, (_, n) in sizes.items()},
        gathered=most,
        flops=flops,
        row=(row.bytes, row.flops),
        decoded=decoded,
        pixels=torch.Size(recipe.sampling.image_size or model.image_size).numel(),
        rewards=getattr(getattr(objective, "rewards", None), "needs", {}),
    )


def _update(recipe: Recipe, policy: Policy, objective: Any) -> tuple[Any, int]:
    """The first batch, and the rows of network calls in which its source draws what it trains on."""
    if _of_noise(recipe):
        return objective.noise, 0
    source = build(DATA, recipe.data, batch_size=recipe.train.batch_size, seed=0)
    if hasattr(source, "rehearse"):
        nobody: Any = None  # there is but this process
        painter = Painter(policy, recipe.sampling, nobody, seed=0)
        source.rehearse(Workplace(painter, None, lambda _: None, print, getattr(objective, "wanted", None)))
    return next(iter(source)), getattr(source, "drawing", 0)


def _of_noise(recipe: Recipe) -> bool:
    return getattr(recipe.objective, "trains", "adapter") != "adapter"


class _Noise:
    """Rows of noise as a batch and as what is optimised: nothing of a network is."""

    def __init__(self, rows: int, x_T: Tensor):
        self.prompts, self.indices, self.step = ("a prompt",) * rows, tuple(range(rows)), 0
        self.x_T = x_T

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> "_Noise":
        return _Noise(len(self.prompts[rows]), self.x_T[rows])

    def parameters(self) -> list[Any]:
        return [self.x_T]

    def observe(self, rewards: Tensor, pixels: Any) -> None:
        """Nothing is chosen in a rehearsal."""


def _parts(recipe: Recipe, model: Any) -> tuple[Policy, Any, dict[str, Any], int]:
    """Policy, objective, what is trained by name, and numbers of adapters that are only kept."""
    if _of_noise(recipe):
        policy, rewards = Policy(model), MeanPixel(recipe.rewards)
        objective = build(OBJECTIVES, recipe.objective, Parts(model, recipe.sampling, rewards, 0))
        shape = (recipe.train.batch_size, *model.latent_shape(recipe.sampling.image_size))
        objective.noise = _Noise(shape[0], torch.empty(shape, device="meta", requires_grad=True))
        return policy, objective, {MAIN: objective.noise}, 0
    config, name = recipe.adapter.model_copy(update={"init": None}), getattr(recipe.objective, "train", MAIN)
    adapter = Adapter(config, model.network, list(model.lora_targets), seed=0, name=name)
    policy = Policy(model, adapter, lambda: recipe.train.autocast(torch.device("cpu")))
    rewards = MeanPixel(recipe.rewards)
    objective = build(OBJECTIVES, recipe.objective, Parts(model, recipe.sampling, rewards, 0))
    cast = gather(policy, objective, of_guidance(recipe))
    own = getattr(objective, "trainable", adapter)
    trained: dict[str, Trainable] = {MAIN: own, **{name: one for name, (one, _) in cast.trained.items()}}
    return policy, objective, trained, cast.held()


def _decoding(model: Any, recipe: Recipe, meter: Peak) -> int:
    """Bytes of decoding one image without gradient."""
    with meter.stretch() as found, torch.no_grad():
        model.codec.decode(torch.empty(1, *model.latent_shape(recipe.sampling.image_size), device="meta"))
    return found.bytes


def way_back(codec: Any, latent: tuple[int, int, int]) -> int:
    """Bytes of decoding one image and of the gradient's way back through it, at most, beside the weights."""
    x0 = torch.empty(1, *latent, device="meta", requires_grad=True)
    with Peak([*codec.vae.state_dict(keep_vars=True).values(), x0]) as meter, fused_attention(meter):
        codec.decode(x0).sum().backward()
    return meter.peak


class MeanPixel:
    """Stands in for the composite of the rewards: the mean pixel, and what `needs` says on top of it."""

    def __init__(self, rewards: Mapping[str, Any]):
        self.rewards = rewards
        self.needs: dict[str, Need] = {}
        self.meter: Peak | None = None

    def score(self, images: Tensor | Undecoded, prompts: Sequence[str]) -> Scored:
        if isinstance(images, Undecoded):
            latents = all(getattr(reward, "reads_latents", False) for reward in self.rewards.values())
            images = images.x0 if latents else images.pixels()
        if self.meter is not None and self.needs:
            self._spike(self.meter)
        mean = images.mean((1, 2, 3))
        return Scored({label: mean.detach() for label in self.rewards}, mean, {})

    def _spike(self, meter: Peak) -> None:
        """Graphs of one reward after another, then their gradients; an off-loaded one comes and goes."""
        before = 0
        for one in self.needs.values():
            meter.spike(before + one.peak + (one.weights if one.offload else 0))
            before += one.kept
            meter.flops += one.flops
        meter.spike(before + max(one.peak - one.kept for one in self.needs.values()))
