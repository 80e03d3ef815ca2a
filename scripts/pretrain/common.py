"""What every stage shares: a resumable training loop, random scenes with captions, and the folders of the results."""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from align.shapes.captions import SKILLS, Requirement, requirements
from align.shapes.compose import compose
from align.shapes.scene import Scene

CHECKPOINTS = Path(__file__).parents[2] / "align" / "shapes" / "checkpoints"
WORK = Path(os.environ.get("SHAPES_WORK", ".pretrain"))  # unfinished stages and caches
DEVICE = torch.device(os.environ.get("SHAPES_DEVICE", "cpu"))  # where networks train, but latent's head
# Relations, bound colours and numbers are learnt last, so they are shown more often.
MIX = {"single": 0.05, "two": 0.16, "counting": 0.24, "colour": 0.06, "position": 0.29, "attribution": 0.20}
_ALL: dict[str, list[Requirement]] = {s: list(requirements(s)) for s in SKILLS}


def draw(count: int, *key: int, often: str | None = None) -> tuple[list[Requirement], list[Scene]]:
    """`count` random requirements of all skills and a scene for each, decided by the integers of `key` alone; a third
    of them of the skill `often`, the rest in the shares of MIX."""
    rng = np.random.default_rng(key)
    shares = [2 / 3 * share + (skill == often) / 3 for skill, share in MIX.items()] if often else list(MIX.values())
    skills = rng.choice(list(MIX), count, p=shares)
    wanted = [_ALL[s][rng.integers(len(_ALL[s]))] for s in skills]
    return wanted, [compose(r, rng) for r in wanted]


def generator(*key: int) -> torch.Generator:
    """A torch generator decided by the integers of `key` alone."""
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7])
    return torch.Generator().manual_seed(seed)


def train(
    name: str,
    modules: dict[str, nn.Module],
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.01,
    warmup: int = 100,
    ema: float = 0.999,
    clip: float = 1.0,
    save_every: int = 250,
    after: Callable[[int], None] | None = None,
    look: tuple[int, Callable[[int], None]] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict:
    """Minimise loss(step) over the modules' parameters; leaves the averaged (EMA) weights in the modules.

    Resumes from WORK/name; the same steps in two pieces give the same weights as in one. A state of other first
    weights or data `given` is refused. `after` is called after each step with the live weights in place;
    `look`, (every so many steps, function), with the averaged ones. Returns the figures: steps, seconds, last loss.
    """
    live = {f"{m}.{k}": p for m, module in modules.items() for k, p in module.named_parameters() if p.requires_grad}
    mean = {k: p.detach().clone() for k, p in live.items()}
    optimiser = torch.optim.AdamW(live.values(), lr=lr, betas=betas, weight_decay=weight_decay)
    folder, begun = WORK / name, mark(live | dict(given or {}))
    start, seconds, smooth = _restore(folder, live, mean, optimiser, begun)
    bar = tqdm(range(start, steps), desc=name, initial=start, total=steps, mininterval=5)
    began = time.monotonic()
    for step in bar:
        progress = (step - warmup) / max(1, steps - warmup)
        factor = (step + 1) / warmup if step < warmup else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimiser.param_groups:
            group["lr"] = lr * factor
        value = loss(step)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(list(live.values()), clip)
        optimiser.step()
        decay = min(ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(mean.values()), [p.detach() for p in live.values()], 1 - decay)
        if after is not None:
            after(step)
        if look is not None and (step + 1) % look[0] == 0:
            with torch.no_grad(), _swapped(live, mean):
                look[1](step + 1)
        smooth = value.item() if smooth is None else 0.98 * smooth + 0.02 * value.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            told = {"step": step + 1, "seconds": seconds + time.monotonic() - began, "loss": smooth, "begun": begun}
            _save(folder, live, mean, optimiser, told)
    with torch.no_grad():
        for k, p in live.items():
            p.copy_(mean[k])
    for module in modules.values():
        module.eval()
    return {
        "steps": steps,
        "seconds": round(seconds + time.monotonic() - began),
        "loss": None if smooth is None else round(smooth, 4),
    }


@contextmanager
def _swapped(live: dict, mean: dict) -> Iterator[None]:
    """The averaged weights in place of the live ones."""
    kept = {k: p.detach().clone() for k, p in live.items()}
    try:
        for k, p in live.items():
            p.data.copy_(mean[k])
        yield
    finally:
        for k, p in live.items():
            p.data.copy_(kept[k])


def mark(tensors: Mapping[str, Tensor]) -> str:
    """What tells weights from others: a digest of their names and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def cached(
    file: Path, models: Iterable[nn.Module], settings: object, make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors of a file that `make` made with these models and settings (whose repr tells them from others); made
    anew where it is of others, or not there."""
    said = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
    of = " ".join((said, *(mark(model.state_dict()) for model in models)))
    if file.exists():
        with safe_open(file, "pt") as f:
            if (f.metadata() or {}).get("of") == of:
                return load_file(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    save_file({k: t.contiguous() for k, t in make().items()}, part, metadata={"of": of})
    part.replace(file)
    return load_file(file)


def _save(folder: Path, live: dict, mean: dict, optimiser: torch.optim.Optimizer, told: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"live.{k}": p.detach() for k, p in live.items()} | {f"mean.{k}": p for k, p in mean.items()}
    for k, p in live.items():
        state |= {f"adam.{k}.{n}": t for n, t in optimiser.state[p].items()}
    part = folder / "state.part"
    save_file({k: t.contiguous().clone() for k, t in state.items()}, part, metadata={"progress": json.dumps(told)})
    part.replace(folder / "state.safetensors")


def _restore(
    folder: Path, live: dict, mean: dict, optimiser: torch.optim.Optimizer, begun: str
) -> tuple[int, float, float | None]:
    """Steps, seconds and loss of what was trained from `begun`, which is put in place; a state that does not say what
    it began from is taken."""
    file = folder / "state.safetensors"
    if not file.exists():
        return 0, 0.0, None
    with safe_open(file, "pt") as f:
        progress = json.loads(f.metadata()["progress"])
    if progress.get("begun", begun) != begun:
        raise SystemExit(f"{file}: was begun from other weights or data than there are now. Remove it to begin anew.")
    state = load_file(file)
    with torch.no_grad():
        for k, p in live.items():
            p.copy_(state[f"live.{k}"])
            mean[k].copy_(state[f"mean.{k}"])
            optimiser.state[p] = {n: state[f"adam.{k}.{n}"].to(p.device) for n in ("exp_avg", "exp_avg_sq")}
            optimiser.state[p]["step"] = state[f"adam.{k}.step"]
    return progress["step"], progress["seconds"], progress.get("loss")


def parameters(modules: Iterable[nn.Module]) -> int:
    """How many parameters the modules hold together."""
    return sum(p.numel() for m in modules for p in m.parameters())


def record(name: str, figures: dict) -> None:
    """Keep a stage's figures beside its checkpoint's, in WORK/figures.json, and print them."""
    WORK.mkdir(parents=True, exist_ok=True)
    known = _figures() | {name: figures}
    (WORK / "figures.json").write_text(json.dumps(known, indent=1))
    print(name, json.dumps(figures))


def _figures() -> dict:
    file = WORK / "figures.json"
    return json.loads(file.read_text()) if file.exists() else {}
