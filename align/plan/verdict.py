"""The plan of a recipe as text: what it will do and need, whether that fits, and what to set where it does not."""

from collections.abc import Mapping
from typing import Any

import torch

from align.config import Recipe
from align.data._base import prompts_of
from align.data.prompts import load_prompts
from align.errors import UserError
from align.models._base import Dtypes
from align.models._small_decoder import small_codec
from align.plan import propose
from align.plan.budget import CONTEXT, GIB, SLACK, Budget, budget, hours
from align.plan.networks import model_of
from align.plan.rehearsal import Rehearsal, plain_dtypes, rehearse, way_back
from align.policy.roles import Calls
from align.registry import DATA, EMBEDDED, REWARDS, build, called
from align.sampling.levers import described, savings
from align.training import judges, packages
from rewards._numerals import counted

LOOKED_AT = 10_000  # rows whose pictures a plan looks for
RATE = 80.0
"""TFLOP/s at which hours are reckoned: about half of what a card of 24 GB promises for dense bfloat16."""


def plan(recipe: Recipe, *, gpu_memory: float | None = None, say: propose.Say = lambda text: None) -> str:
    """The plan as text; no weights are read or downloaded but by rewards of the user's own, which are tried as in
    training. What training would refuse raises its error here.

    `gpu_memory` in GiB: planned for a GPU that has so much, whatever this machine has. Default: this machine's. `say`
    is told of each rehearsal of what it would take to fit.
    """
    lines = _intent(recipe)
    if lacking := packages.absent(recipe):
        lines["not here"] = " ".join(lacking)
    rewards: Any = recipe.rewards
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for label, config in rewards.items():
        if judges.own(config):
            source = build(DATA, recipe.data, batch_size=recipe.train.batch_size, seed=0)
            build(REWARDS, config).to(device).try_out(label, prompts_of(source), device)
    judges.try_all(recipe, device)
    if why := getattr(recipe.objective, "unplanned", ""):
        return _table(lines | {"parameters": f"unknown: {why}"})
    if not str(getattr(recipe.model, "checkpoint", "")).startswith(EMBEDDED):
        say("rehearses an update without weights; of the largest models that takes a minute")
    gpu = gpu_memory is not None or torch.cuda.is_available()
    dtypes = plain_dtypes(getattr(recipe.model, "dtype", Dtypes()), gpu=True if gpu_memory is not None else None)
    try:
        model = model_of(recipe.model, dtypes)
    except UserError as error:  # its configs cannot be had, or it is made for another machine
        return _table(lines | {"parameters": f"unknown: {error}"})
    for block in (recipe.sampling, recipe.evaluate and recipe.evaluate.sampling):
        if block is not None:
            block.grid(model)
    lines["model"] = called(recipe.model, model)
    found = rehearse(recipe, model=model, with_rewards=True)
    needed = budget(recipe, found, gpu=gpu)
    lines |= _costs(recipe, found, dtypes, needed, gpu)
    if told := _first(recipe, found):
        lines = {"writes to": lines["writes to"], "data": told, **lines}
    if recipe.train.compile:
        lines["compiled"] = compiled(recipe)
    if getattr(recipe.objective, "decodes", False) and (saves := savings(recipe.sampling)):
        lines["levers"] = saves
    if decoded := _decoded(recipe, model):
        lines["decoder"] = decoded
    if fast := described(recipe.sampling, dtypes.network):
        lines["fast"] = fast
    if gpu_memory is None:
        gpu_memory = propose.of_this_machine()
    if gpu_memory is not None:
        lines[f"fits {gpu_memory:g} GiB"] = propose.verdict(recipe, found, gpu_memory, say)
    return _table(lines)


def _intent(recipe: Recipe) -> dict[str, str]:
    train, sampling = recipe.train, recipe.sampling
    return {
        "writes to": recipe.output,
        "model": called(recipe.model),
        "rewards": ", ".join(f"{label} x {reward.weight:g}" for label, reward in recipe.rewards.items()) or "none",
        "updates": f"{train.num_updates} of {counted(train.batch_size, 'sample')} by {_name(recipe.objective)}, "
        f"{counted(sampling.num_steps, 'step')} of {sampling.step_rule}, {sampling.how.described()}",
    }


def _costs(recipe: Recipe, found: Rehearsal, dtypes: Dtypes, needed: Budget, gpu: bool) -> dict[str, str]:
    updates = found.total / found.rows
    calls = Calls(*(round(updates * n) for n in (found.calls.forward, found.calls.recompute, found.calls.backward)))
    calls.forward += found.drawing
    each = ", ".join(f"{name} {number / 1e6:.1f} M" for name, number in found.parameters.items())
    kept = getattr(recipe.model, "quantize", None)
    precision = f"network {dtypes.network}{f' kept in {kept}' if kept else ''}, text {dtypes.text}, vae {dtypes.vae}"
    work, time = hours(recipe, found, RATE)
    beside = f", the runtime {CONTEXT / GIB:.1f} and {SLACK:.0%} for gaps (both reckoned)" if gpu else ""
    unknown = f"; without {', '.join(needed.unknown)}, whose size is not known" if needed.unknown else ""
    away = [label for label, need in found.rewards.items() if need.offload]
    in_turn = f" ({', '.join(away)} in CPU memory between uses)" if away else ""
    return {
        "precision": precision + ("" if gpu else " (this machine has no GPU; --gpu-memory 24 plans for one)"),
        "parameters": f"{sum(found.parameters.values()) / 1e6:.1f} M ({each})",
        "trainable": f"{found.trainable / 1e6:.3f} M (rank {recipe.adapter.rank})",
        "network calls": f"{counted(calls.forward + calls.recompute, 'row')} an update: {calls.forward} forward, of "
        f"which {calls.backward} with gradient, and {calls.recompute} recomputed: {calls.forward_equivalents} "
        "forward-equivalents",
        "memory": f"about {needed.total / GIB:.1f} GiB a process, most in {needed.where}: weights "
        f"{needed.weights / GIB:.1f}, rewards {needed.rewards / GIB:.1f}{in_turn}, adapter and optimiser "
        f"{needed.moments / GIB:.1f}, activations of {counted(found.rows, 'sample')} at once "
        f"{needed.activations / GIB:.1f}{beside}{unknown}",
        "phases": ", ".join(f"{phase} {size / GIB:.1f} GiB" for phase, size in needed.phases.items()),
        "time": f"{_work(work)} an update; {_hours(time)} for all of them at {RATE:g} TFLOP/s, a GPU's "
        "(reckoned; hooks and the report come on top)" + ("" if gpu else "; a CPU takes much longer"),
    }


def _first(recipe: Recipe, found: Rehearsal) -> str:
    """The rows of pictures that are there, or what it takes to make them before the first update; "" of other data."""
    data: Any = recipe.data
    source: Any = build(DATA, data, batch_size=recipe.train.batch_size, seed=0)
    if not hasattr(source, "look"):
        return ""
    rows, batch = source.look(), recipe.train.batch_size
    if rows is not None:
        files = {picture.path for row in rows[:LOOKED_AT] for picture in row.pictures if hasattr(picture, "path")}
        gone = [str(path) for path in sorted(files) if not path.exists()]
        missing = f", {counted(len(gone), 'picture')} missing, such as {gone[0]}" if gone else ""
        few = f", fewer than the {batch} of an update: each comes more than once in one" if len(rows) < batch else ""
        more = "".join(f", {note.strip()}" for note in source.notes(rows))
        return f"{counted(len(rows), source.noun.removesuffix('s'))} in {source.folder}{missing}{few}{more}"
    if data.making is None:
        return ""
    prompts = len(load_prompts(data.make.prompts, count=data.make.num_prompts, key="data.make.prompts"))
    calls = recipe.sampling.num_calls
    number = prompts * data.make.num_images * (calls + recipe.sampling.how.calls_in_full(calls))
    work, time = number * found.row[1] / 1e15, number * found.row[1] / (RATE * 1e12) / 3600
    return (
        f"first draws {prompts} x {data.make.num_images} images, judged by {', '.join(data.make.rewards)}, into "
        f"{source.folder}: {number} rows of network calls, {_work(work)}, {_hours(time)} at {RATE:g} TFLOP/s"
    )


def compiled(recipe: Recipe) -> str:
    """What train.compile compiles, for a plan."""
    block = recipe.sampling
    if recipe.train.compile is True:
        return "the network, in all its calls; it takes minutes before the first update"
    calls = str(block.num_free) if block.window in ("last", "subset") else "those"
    return f"the network, in {calls} of {block.num_calls} calls, which carry no gradient; all others run as they are"


def _decoded(recipe: Recipe, model: Any) -> str:
    """What a small decoder saves where the reward's gradient goes through one; "" where none is known or chosen."""
    levers = recipe.sampling.levers
    chosen = levers.decoder if levers else None
    sources = [*filter(None, [chosen]), *getattr(model, "small_decoders", ())]
    pixels = not all(getattr(reward, "reads_latents", False) for reward in recipe.rewards.values())
    if not pixels or not getattr(recipe.objective, "decodes", False) or not sources:
        return ""
    latent = model.latent_shape(recipe.sampling.image_size)
    source = sources[0]
    try:
        other = small_codec(source, model)
    except UserError:
        if chosen:
            raise
        return ""  # a model of the family with latents of its own, as the embedded one
    full, small = (way_back(codec, latent) / GIB for codec in (model.codec, other))
    so = f"{source} {small:.2f} GiB in place of {full:.2f}" if chosen else f"{full:.2f} GiB, {source} {small:.2f}"
    return f"an image at once takes, there and back, {so}"


def _hours(hours: float) -> str:
    if 60 * hours < 1:
        return "less than a minute"
    return f"about {hours:.1f} h" if hours >= 1 else f"about {60 * hours:.2g} min"


def _work(pflop: float) -> str:
    return f"{pflop:.3g} PFLOP" if pflop >= 0.1 else f"{1000 * pflop:.2g} TFLOP"


def _name(config: Any) -> str:
    return str(getattr(config, "name", type(config).__name__))


def _table(lines: Mapping[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())
