"""What cheaper steps before the window do to DRaFT's gradient: python scripts/bench/levers.py [--images 8] [--steps 10]

On the embedded model with the adapter of a run (or a random one), for each lever the cosine of the gradient to that of
the recipe as it is, on the same prompts and noises, and the seconds of an update's forward and backward pass. For
`reuse`, the same in each further update on the same prompts, the adapter moved by the recipe's optimiser in between.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from align.config import load_recipe
from align.data.prompts import PromptBatch, load_prompts
from align.objectives._base import Parts
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.registry import MODELS, OBJECTIVES, REWARDS, build
from rewards import Composite

LEVERS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "guidance refresh": {"guidance": "refresh"},
    "guidance none": {"guidance": "none"},
    "half the steps": {"steps": 0},
    "bf16": {"precision": "bf16"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="draft/shapes")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--adapter", help="of a run, to begin from; default: a random one of small norm")
    parser.add_argument("--updates", type=int, default=6, help="on the same prompts, for reuse")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    args = parser.parse_args()
    torch.manual_seed(0)
    changes = {"sampling.num_steps": args.steps, "sampling.guidance_scale": args.guidance, "sampling.last_k": 1}
    recipe = load_recipe(args.recipe, {**changes, "adapter.init": args.adapter}, on_disk=False)
    model = build(MODELS, recipe.model)
    adapter = Adapter(recipe.adapter, model.network, list(model.lora_targets), seed=0)
    if args.adapter is None:
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
    policy = Policy(model, adapter)
    rewards = Composite({name: build(REWARDS, one) for name, one in recipe.rewards.items()}, recipe.combine)
    prompts = load_prompts("shapes:select", count=args.images, key="prompts")
    batch = PromptBatch(tuple(prompts), tuple(range(len(prompts))), 0)
    exact: torch.Tensor | None = None
    rows: list[dict[str, Any]] = []
    for name, levers in LEVERS.items():
        told = {**levers, "steps": (args.steps - 1) // 2} if "steps" in levers else levers
        block = load_recipe(recipe, {"sampling.levers": told or None}, on_disk=False).sampling
        objective = build(OBJECTIVES, recipe.objective, Parts(model, block, rewards, 0))
        policy.calls.forward = 0
        start = time.process_time()
        loss = objective(policy, batch).per_sample.mean()
        found = torch.cat([g.flatten() for g in torch.autograd.grad(loss, adapter.parameters())])
        seconds = time.process_time() - start
        exact = found if exact is None else exact
        cosine = float(torch.nn.functional.cosine_similarity(found, exact, dim=0))
        print(f"{name:<18} cosine {cosine:.4f}  {policy.calls.forward} rows forward  {seconds:.2f} s CPU", flush=True)
        calls = policy.calls.forward
        rows.append({"lever": name, "cosine": cosine, "rows": calls, "seconds": round(seconds, 2)})
    rows += again(recipe, Parts(model, recipe.sampling, rewards, 0), policy, batch, args.updates)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def again(recipe: Any, parts: Parts, policy: Policy, batch: PromptBatch, updates: int) -> list[dict[str, Any]]:
    """Updates on one batch whose windows all begin where the first one's did, beside gradients that begin anew."""
    kept = load_recipe(recipe, {"sampling.levers": {"reuse": updates}}, on_disk=False).sampling
    fresh, reused = (build(OBJECTIVES, recipe.objective, replace(parts, sampling=s)) for s in (recipe.sampling, kept))
    parameters = list(policy.adapter.parameters())
    optimiser = torch.optim.AdamW(parameters, recipe.optim.lr, weight_decay=recipe.optim.weight_decay)
    rows = []
    for number in range(updates):
        reused.before_update(policy, [batch], lambda rows: rows)
        found = []
        for objective in (fresh, reused):
            loss = objective(policy, batch)
            found.append(torch.autograd.grad(loss.per_sample.mean(), parameters))
        reused.after_update(lambda rows: rows)
        flat = [torch.cat([g.flatten() for g in gradient]) for gradient in found]
        cosine = float(torch.nn.functional.cosine_similarity(*flat, dim=0))
        stale = f"  stale {float(loss.metrics['stale']):.3f}" if "stale" in loss.metrics else ""
        print(f"reuse, update {number + 1:<4} cosine {cosine:.4f}{stale}", flush=True)
        rows.append({"lever": f"reuse, update {number + 1}", "cosine": cosine})
        for parameter, gradient in zip(parameters, found[1], strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, recipe.train.max_grad_norm or float("inf"))
        optimiser.step()
    return rows


if __name__ == "__main__":
    main()
