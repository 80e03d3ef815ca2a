"""Train the embedded models from nothing: python scripts/pretrain_shapes.py STAGE... (or `all`).

Stages, in order: text vae clip sd web eye detector tune flow flow_web turbo pick, then export, then latent. Each
resumes where it was stopped. Unfinished work lies in .pretrain/ (or $SHAPES_WORK); `export` writes the checkpoints.
`check` measures those, `denoising` and `attention` look at the stages sd and flow, `restore` brings kept stages back.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
STAGES = (
    *("text", "vae", "clip", "sd", "web", "eye", "detector", "tune"),
    *("flow", "flow_web", "turbo", "pick", "export", "latent"),
)
LOOKS = ("check", "denoising", "attention")


def main() -> None:
    """Run the stages named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="+", choices=[*STAGES, *LOOKS, "restore", "all"])
    parser.add_argument("--steps", type=int, help="updates of the stage (default: the stage's own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", help="sd, flow: folder of a pipeline to start from")
    parser.add_argument("--often", help="flow: a skill that a third more of the captions ask for")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; two single-thread stages side by side pay")
    args = parser.parse_args()
    os.environ["SHAPES_DEVICE"] = args.device
    import torch

    torch.set_num_threads(args.threads)
    for stage in STAGES if "all" in args.stage else args.stage:
        options = {"steps": args.steps, "seed": args.seed, "start": args.start if stage in ("sd", "flow") else None}
        options |= {"often": args.often if stage == "flow" else None}
        known = {k: v for k, v in options.items() if v is not None}
        module = importlib.import_module(f"scripts.pretrain.{stage}")
        module.main(**({} if stage in ("export", "restore", *LOOKS) else known))


if __name__ == "__main__":
    main()
