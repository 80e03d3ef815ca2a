"""What a differentiated chain keeps: bytes, peak memory and CPU time of N = K steps in each mode of sampling.memory.

    python scripts/bench/memory.py
    python scripts/bench/memory.py --docs docs/lab/performance.md

The embedded Stable Diffusion with an adapter, guided, step rule leapfrog for all modes; the loss is a mean of x0, so
that no decoder and no reward hides the chain. Kept: the storages that the forward pass made and that are alive before
the backward pass. Peak: the largest resident set of a process that does one forward and backward pass, less that of one
that is about to. Each figure is of a process of its own, forked from one that has loaded and called the model once.
"""

import argparse
import gc
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from align.policy.lora import AdapterConfig
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.registry import MODELS, build
from align.sampling import SamplingConfig, rollout
from samplers import Rng

MODES = ("stored", "checkpointed", "reversible")
BEGIN, END = "<!-- written by scripts/bench/memory.py -->", "<!-- end -->"
MIB = 2**20


class Alive(TorchDispatchMode):
    """The storages that operations return, without keeping them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self.seen[StorageWeakRef(storage)] = storage.nbytes()
        return result

    def total(self) -> int:
        gc.collect()
        return sum(size for reference, size in self.seen.items() if not reference.expired())


class Chain:
    """One update's chain, without the update."""

    def __init__(self, batch: int):
        self.model: Any = build(MODELS, MODELS.look_up({"name": "sd", "checkpoint": "embedded:shapes-sd"}))
        self.adapter = Adapter(AdapterConfig(rank=4), self.model.network, list(self.model.lora_targets))
        self.policy = Policy(self.model, self.adapter)
        self.prompts = ["a red circle"] * batch

    def forward(self, mode: str, num_steps: int) -> torch.Tensor:
        config = SamplingConfig(
            num_steps=num_steps,
            step_rule="leapfrog",
            guidance_scale=2.0,
            window="full",
            memory=mode,  # type: ignore[arg-type]
        )
        rng = Rng(0, range(len(self.prompts)))
        role, grad = self.policy.role("train"), config.grad_policy()
        return rollout(config, self.model, role, self.prompts, rng, grad=grad).x0.mean()

    def kept(self, mode: str, num_steps: int) -> dict[str, float]:
        with Alive() as storages:
            loss = self.forward(mode, num_steps)
            return {"kept": storages.total() - loss.nbytes}

    def spent(self, mode: str, num_steps: int) -> dict[str, float]:
        before, began = _peak(), time.process_time()
        self.forward(mode, num_steps).backward()
        return {"seconds": time.process_time() - began, "peak": _peak() - before}


def _peak() -> int:
    """Largest resident set of this process so far, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def apart(call: Any, *arguments: Any) -> dict[str, float]:
    """The call's result, in a process of its own."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        status = 1
        try:
            os.write(writer, json.dumps(call(*arguments)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.wait()
    return json.loads(text)


def table(found: dict[tuple[str, int], dict[str, float]], lengths: list[int], batch: int) -> str:
    lines = [
        f"Embedded Stable Diffusion, batch {batch}, guidance 2, 2 cores, 1 thread, torch {torch.__version__}; MiB, and "
        "seconds of CPU time.",
        "",
        "| N = K | " + " | ".join(f"{mode}: kept, peak, s" for mode in MODES) + " |",
        "|---" * (1 + len(MODES)) + "|",
    ]
    for n in lengths:
        cells = (found[mode, n] for mode in MODES)
        said = [f"{c['kept'] / MIB:.2f}, {c['peak'] / MIB:.0f}, {c['seconds']:.2f}" for c in cells]
        lines.append(f"| {n} | " + " | ".join(said) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="1,5,10,25,50")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--docs", type=Path, help="page whose table is written anew")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lengths = [int(n) for n in arguments.lengths.split(",")]
    chain = Chain(arguments.batch)
    chain.forward("checkpointed", 1)
    found = {(mode, n): apart(chain.kept, mode, n) | apart(chain.spent, mode, n) for mode in MODES for n in lengths}
    text = table(found, lengths, arguments.batch)
    print(text)
    if arguments.docs is not None:
        page = arguments.docs.read_text()
        before, _, rest = page.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not end:
            raise SystemExit(f"{arguments.docs} has no place for the table: {BEGIN} ... {END}")
        arguments.docs.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
