"""Run by test_sharded.py, as two processes: runs with a network cut over them, and how it was cut, as JSON.

usage: sharded_worker.py RECIPES OUTPUT (a file of {label: recipe}, a folder)
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

import align
from align import sharding


def main(recipes: Path, output: Path) -> None:
    own, seen = sharding.shard, {}

    def watched(network: Any, *how: Any, **more: Any) -> None:
        own(network, *how, **more)
        held = dict(network.named_parameters())
        cut = [p for p in held.values() if isinstance(p, DTensor)]
        share = sum(p.to_local().numel() for p in cut) / sum(p.numel() for p in cut)
        seen.update(whole=[n for n, p in held.items() if not isinstance(p, DTensor)], cut=len(cut), share=share)

    sharding.shard = watched
    told = {}
    for label, (recipe, settings) in json.loads(recipes.read_text()).items():
        for more in settings:  # a second one goes on from the first's checkpoint
            align.train(recipe, more, output=str(output / label))
        told[label] = dict(seen)
    (output / f"rank-{torch.distributed.get_rank()}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
