"""Run by test_processes.py, as two processes and within its own: one short run for each case, its numbers as JSON.

usage: parity_worker.py OUTPUT_FOLDER
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from align_toys import Chase, Regression, fit, toy_policy, weights

from align.hooks._base import Hook, State
from align.objectives._base import Loss


class Centred(Regression):
    """Weights every row by its index's distance from the mean index of the whole update."""

    def before_update(self, policy: Any, micro_batches: Any, gather: Any) -> float:
        mine = [i for batch in micro_batches for i in batch.indices]
        return float(gather(torch.tensor(mine, dtype=torch.float32)).mean())

    def __call__(self, policy: Any, batch: Any, context: Any = None) -> Loss:
        loss = super().__call__(policy, batch)
        distance = (torch.tensor(batch.indices, dtype=torch.float32) - context).abs()
        return loss._replace(weight=distance, metrics={"mean_index": torch.tensor(context)})


class KillRank(Hook):
    """A signal that reaches the last process only."""

    def __init__(self, rank: int):
        self.rank = rank

    def after_update(self, state: State) -> None:
        if state.step == 2 and Accelerator(cpu=True).process_index == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)


class Enough(Hook):
    """Ends a run that would end as an error: it learns nothing."""

    def after_update(self, state: State) -> None:
        state.stop = "enough" if state.step == 2 else None


CASES: dict[str, dict[str, Any]] = {
    "even": {"batch_size": 8},
    "uneven": {"batch_size": 5, "micro_batch_size": 2},
    "fewer rows than processes": {"batch_size": 1},
    "rows dropped": {"batch_size": 7, "objective": Regression(drop=3)},
    "all rows dropped": {"batch_size": 7, "objective": Regression(drop=1), "hooks": [Enough()]},
    "not finite": {"batch_size": 5, "objective": Regression(nan_at={1})},
    "statistics first": {"batch_size": 5, "micro_batch_size": 2, "objective": Centred()},
    "average": {"batch_size": 5, "ema": 0.5},
    "several trained": {"batch_size": 5, "micro_batch_size": 2, "objective": Chase()},
}


def main(output: Path) -> None:
    accelerator = Accelerator(cpu=True)
    size, last = accelerator.num_processes, accelerator.num_processes - 1
    report: dict[str, Any] = {"num_processes": size, "cases": {}}
    for name, settings in CASES.items():
        torch.manual_seed(accelerator.process_index)  # nothing may depend on the global generator
        policy, state, records = fit(output / "runs" / name, **settings)
        with state.average():
            report["cases"][name] = {"weights": weights(policy).tolist(), "records": records}
    _, state, _ = fit(output / "runs" / "signal", hooks=[KillRank(last)])
    report["signal"] = (state.step, state.interrupted, len(list((output / "runs/signal/checkpoints").iterdir())))
    report["fresh"] = weights(toy_policy(0, rank=2)).tolist()
    (output / f"rank-{accelerator.process_index}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
