"""What a recipe will do and need, found out without weights: one micro-batch of its objective on the meta device.

The meta device has shapes and no data. The networks are built on it from their configs (a Hub id's configs are a few
kB), the objective runs forward and backward as it would in training, the policy counts the calls, and every storage
that is made or freed on the way is added up: the peak is what memory must hold beside the weights. Attention is
replaced by an operation that keeps what a fused kernel keeps. Rewards are not built; a mean over pixels stands in.
"""

import functools
import json
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from align.config import Recipe
from align.data._base import micro_batches
from align.data._workplace import Workplace
from align.errors import UserError
from align.models._quantize import size
from align.objectives._base import Parts
from align.policy.cast import MAIN, gather, of_guidance
from align.policy.painter import Painter
from align.policy.roles import Calls, Policy
from align.policy.trainable import Adapter, Trainable
from align.registry import DATA, MODELS, OBJECTIVES, build, resolve_embedded
from align.sampling.levers import savings
from align.training.movers import alone, moves
from rewards._composite import Scored

MIB = 2**20


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


def plan(recipe: Recipe) -> str:
    """The plan as text; no weights are read or downloaded. What training would refuse raises its UserError here."""
    train = recipe.train
    sampling = recipe.sampling
    lines = {
        "writes to": recipe.output,
        "model": f"{_name(recipe.model)} {getattr(recipe.model, 'checkpoint', '')}".rstrip(),
        "rewards": ", ".join(f"{label} x {reward.weight:g}" for label, reward in recipe.rewards.items()) or "none",
        "updates": f"{train.num_updates} of {train.batch_size} samples by {_name(recipe.objective)}, "
        f"{sampling.num_steps} steps of {sampling.step_rule}, {sampling.how.described()}",
    }
    try:
        model = _model(recipe)
    except UserError as error:  # its configs cannot be had, or it is made for another machine
        return _table(lines | {"parameters": f"unknown: {error}"})
    for block in (sampling, recipe.evaluate and recipe.evaluate.sampling):
        if block is not None:
            block.grid(model)
    found = rehearse(recipe, model=model)
    updates = found.total / found.rows
    calls = Calls(*(round(updates * n) for n in (found.calls.forward, found.calls.recompute, found.calls.backward)))
    calls.forward += found.drawing
    floats = {"adamw": 4, "adamw8bit": 2.5, "sgd": 3}[recipe.optim.algorithm]  # weight, gradient, one or two moments
    moments = 4 * (found.trainable * floats + found.held)
    total = found.weights + moments + found.peak
    each = ", ".join(f"{name} {number / 1e6:.1f} M" for name, number in found.parameters.items())
    if saves := savings(sampling):
        lines["levers"] = saves
    lines |= {
        "parameters": f"{sum(found.parameters.values()) / 1e6:.1f} M ({each})",
        "trainable": f"{found.trainable / 1e6:.3f} M (rank {recipe.adapter.rank})",
        "network calls": f"{calls.forward + calls.recompute} rows an update: {calls.forward} forward, of which "
        f"{calls.backward} with gradient, and {calls.recompute} recomputed: {calls.forward_equivalents} "
        "forward-equivalents",
        "memory": f"about {total / MIB:.0f} MiB a process with {found.rows} samples at once: weights "
        f"{found.weights / MIB:.0f}, adapter and optimiser {moments / MIB:.0f}, activations {found.peak / MIB:.0f}; "
        "without the rewards' own",
    }
    return _table(lines)


def _model(recipe: Recipe) -> Any:
    model = build(MODELS, recipe.model, _meta_pipeline(recipe.model))
    for module in model.components().values():
        module.to("meta")
        if hasattr(module, "set_attn_implementation"):  # sdpa's mask looks at the padding's values, and there are none
            module.set_attn_implementation("eager")
    return model


def rehearse(recipe: Recipe, *, num_processes: int = 1, model: Any = None) -> Rehearsal:
    """The first micro-batch of the recipe on the meta device; `model` is its model there, if that is made already."""
    model = _model(recipe) if model is None else model
    model.text.encode = functools.partial(model.text.encode, grad=True)  # without hash and cache: there are no weights
    sizes = {name: size(module) for name, module in model.components().items()}
    parameters, weights = {name: number for name, (number, _) in sizes.items()}, sum(n for _, n in sizes.values())
    config, name = recipe.adapter.model_copy(update={"init": None}), getattr(recipe.objective, "train", MAIN)
    adapter = Adapter(config, model.network, list(model.lora_targets), seed=0, name=name)
    policy = Policy(model, adapter, lambda: recipe.train.autocast(torch.device("cpu")))
    objective = build(OBJECTIVES, recipe.objective, Parts(model, recipe.sampling, _MeanPixel(recipe.rewards), 0))
    cast = gather(policy, objective, of_guidance(recipe))
    own = getattr(objective, "trainable", adapter)
    trained: dict[str, Trainable] = {MAIN: own, **{name: one for name, (one, _) in cast.trained.items()}}
    source = build(DATA, recipe.data, batch_size=recipe.train.batch_size, seed=0)
    if hasattr(source, "rehearse"):
        nobody: Any = None  # there is but this process
        painter = Painter(policy, recipe.sampling, nobody, seed=0)
        source.rehearse(Workplace(painter, None, lambda _: None, print, getattr(objective, "wanted", None)))
    update = next(iter(source))
    batch = micro_batches(update, recipe.train.micro_batch_size, num_processes=num_processes)[0]
    existing = [p for m in model.components().values() for p in (*m.state_dict(keep_vars=True).values(), *m.buffers())]
    with _fused_attention(), Peak(existing) as memory:
        for move in moves(objective, 0):
            with alone(trained[move.trainable], trained.values()):
                loss = move.objective(policy, batch)
                with policy.backward():
                    (loss.per_sample if loss.kept is None else loss.per_sample + loss.kept).sum().backward()
    trainable = sum(p.numel() for one in trained.values() for p in one.parameters())
    counts = len(batch), len(update), getattr(source, "drawing", 0)
    return Rehearsal(parameters, weights, trainable, cast.held(), *counts, policy.calls, memory.peak)


def _meta_pipeline(config: Any) -> Any:
    """The diffusers pipeline of a checkpoint with its networks on the meta device, from its JSON files."""
    import diffusers
    import transformers

    folder = _configs(config)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    components: dict[str, Any] = {}
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list):
            continue
        library = {"diffusers": diffusers, "transformers": transformers}.get(entry[0])
        kind = getattr(library, str(entry[1]), None)
        if kind is None or name in ("safety_checker", "feature_extractor", "image_encoder"):
            components[name] = None
        elif not issubclass(kind, torch.nn.Module):
            components[name] = kind.from_pretrained(folder, subfolder=name)
        else:
            with torch.device("meta"):
                components[name] = _untrained(kind, folder / name)
    dtypes = config.dtype.resolve()
    for name, module in components.items():
        if isinstance(module, torch.nn.Module):
            role = "network" if name in ("unet", "transformer") else "vae" if name == "vae" else "text"
            torch.nn.Module.to(module, dtypes[role])  # diffusers' own warns of modules that want float32
    names = [name for name in index if not name.startswith("_")]
    return getattr(diffusers, index["_class_name"])(**{n: components.get(n, index[n]) for n in names})


def _untrained(kind: Any, folder: Path) -> torch.nn.Module:
    if hasattr(kind, "load_config"):
        return kind.from_config(kind.load_config(folder))
    return kind(kind.config_class.from_pretrained(folder))


def _configs(config: Any) -> Path:
    checkpoint = resolve_embedded(config.checkpoint)
    folder = Path(getattr(config, "config_dir", None) or checkpoint).expanduser()
    if (folder / "model_index.json").is_file():
        return folder
    if checkpoint.count("/") != 1 or folder.exists():
        raise UserError(f"model.checkpoint={checkpoint} has no model_index.json, from which its networks are built.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(checkpoint, revision=config.revision, allow_patterns=["*.json", "*.txt"]))
    except Exception as error:  # the Hub's client and its transport raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the configs of {checkpoint} are neither cached nor to be had: {reason}") from None


class _MeanPixel:
    """Stands in for the composite of the rewards."""

    def __init__(self, rewards: Mapping[str, Any]):
        self.rewards = rewards

    def score(self, images: Tensor, prompts: Sequence[str]) -> Scored:
        mean = images.mean((1, 2, 3))
        return Scored({label: mean.detach() for label in self.rewards}, mean, {})


class Peak(TorchDispatchMode):
    """Bytes of the storages that are alive at once and were made inside; `existing` tensors are not counted."""

    def __init__(self, existing: Sequence[Tensor] = ()):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in existing}
        self.current = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.current += size
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.current -= size


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as a fused kernel stores it: queries, keys, values and the output, not the matrix of all pairs."""
    original = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = lambda query, key, value, *_, **__: _Attention.apply(query, key, value)
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _name(config: Any) -> str:
    return str(getattr(config, "name", type(config).__name__))


def _table(lines: Mapping[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())
