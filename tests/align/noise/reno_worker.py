"""Run by test_reno_processes.py, as two processes and within its own: one run of noise optimisation, its lines as JSON.

usage: reno_worker.py MODEL OUTPUT_FOLDER
"""

import json
import sys
from pathlib import Path

from accelerate import Accelerator
from test_reno_run import recipe

from align import sharding
from align.noise.run import Session
from align.noise.studio import Studio


def main(model: str, output: Path) -> None:
    accelerator = Accelerator(cpu=True)
    prompts = ["a red cat", "two blue dogs", "a green bird"]
    settings = recipe(model, **{"data.prompts": prompts, "objective.num_starts": 3})
    outcomes = list(Session(settings, output / "images", print, Studio(settings, accelerator)).run(frames=True))
    report = {"num_processes": accelerator.num_processes, "lines": [json.loads(o.model_dump_json()) for o in outcomes]}
    (output / f"rank-{accelerator.process_index}.json").write_text(json.dumps(report))
    sharding.leave()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
