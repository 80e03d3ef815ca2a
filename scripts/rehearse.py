"""A recipe rehearsed for real: its checkpoint at the published size with random weights, trained, saved and used.

    python scripts/rehearse.py draft/sd15_hpsv2 --dtype bfloat16 sampling.num_steps=3 train.batch_size=1
    python scripts/rehearse.py draft/sd15_hpsv2 --fraction 1/10           # a small network of the same form, in seconds

The pipeline's folder is written (scripts/bench/random_pipeline.py), the recipe runs for `--updates` with its rewards at
their published size, hooks and report left out; the adapter is loaded into the stock pipeline, which then draws, and is
exported in every form that the family has. Prints one JSON line: seconds of each update, and in GiB the peak of the
whole process (on a GPU what torch has allocated) and that of training beside the plan's. `--rows FILE` keeps it, and
scripts/bench/rehearsal_page.py writes the table. What is learned means nothing.
"""

import argparse
import gc
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "bench"))

from random_rewards import fill  # type: ignore[import-not-found]

import align
from align import plan
from align import run as runs
from align.config import load_recipe
from align.models._plain_adapter import attach
from align.models._real_size import find
from align.plan.budget import GIB, budget
from align.policy.adapter_file import FILE_NAME
from align.registry import HOOKS, REWARDS, build, model_family
from align.share.export import export
from align.share.stock import stock
from align.training.growth import resident
from rewards._unloaded import real, without_checkpoints

HERE = Path(__file__).resolve().parent
HIGH = Path("/proc/self/clear_refs")
"""Writing 5 sets the high-water mark of this process back to what it holds."""


class Training:
    """Memory from the first update on, less what the libraries took before anything was loaded: what a plan counts.

    Linux alone tells it of a CPU, where the process's high-water mark can be set back.
    """

    def __init__(self) -> None:
        self.libraries = 0.0 if torch.cuda.is_available() else (resident() or 0) / GIB
        self.before = 0.0

    def begin(self) -> None:
        """What loading took for a while is forgotten, but for `before`, the peak up to here."""
        self.before = peak_gib()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif HIGH.exists():
            HIGH.write_text("5")

    def peak(self) -> float | None:
        """GiB since `begin`; None where the system does not tell."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / GIB
        if not HIGH.exists():
            return None
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        held = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
        return held / GIB - self.libraries


@contextmanager
def standing_in(training: Training, *, small: bool) -> Iterator[None]:
    """Rewards are built at their published size without their checkpoints; `small`: as the mean pixel. `training`
    begins where the loop does."""
    from transformers.initialization import no_init_weights

    def built(registry: Any, config: Any, *parts: Any, **more: Any) -> Any:
        if registry is HOOKS and config.name == "metrics":
            hook: Any = build(registry, config, *parts, **more)
            start = hook.start
            hook.start = lambda state: (training.begin(), start(state))
            return hook
        if registry is not REWARDS or small:
            return build(registry, _mean_pixel(config) if registry is REWARDS else config, *parts, **more)
        known = real(config.name, getattr(config, "model", None))
        with without_checkpoints(known) if known else nullcontext(), no_init_weights():
            reward: Any = build(registry, config)
            if known:
                fill(reward)
        return reward

    runs.build = built  # type: ignore[attr-defined]
    try:
        yield
    finally:
        runs.build = build  # type: ignore[attr-defined]


def _mean_pixel(config: Any) -> Any:
    return REWARDS.config_class("brightness")(weight=config.weight)  # type: ignore[call-arg]


def peak_gib() -> float:
    """Of this process since it began; on a GPU of torch's allocations."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    import resource

    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def place_of_work() -> str:
    """The GPU, or how many threads of this processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    count = torch.get_num_threads()
    return f"{platform.machine()}, {count} thread{'s' if count > 1 else ''}"


def foretold(tree: dict[str, Any], folder: Path) -> float:
    """GiB of training by the plan of what is about to run."""
    recipe = load_recipe(tree, {"output": str(folder / "run")})
    found = plan.rehearse(recipe, with_rewards=True, gpu=torch.cuda.is_available())
    return round(budget(recipe, found, gpu=torch.cuda.is_available()).phases["training"] / GIB, 2)


def rehearse(
    recipe: str, words: list[str], folder: Path, *, dtype: str, fraction: Fraction, updates: int
) -> dict[str, Any]:
    """What is printed; `folder` is filled with the pipeline, the run and its exports."""
    loaded = load_recipe(recipe, words, on_disk=False)
    checkpoint = str(getattr(loaded.model, "checkpoint", ""))
    if find(checkpoint) is None:
        raise SystemExit(f"{recipe}: {checkpoint} is not a checkpoint whose sizes are known. See `align models`.")
    place, started = folder / "pipeline", time.perf_counter()
    told = [sys.executable, str(HERE / "bench" / "random_pipeline.py"), checkpoint, str(place)]
    told += ["--dtype", dtype, "--fraction", str(fraction)]
    said = subprocess.run(told, capture_output=True, text=True, check=False, cwd=HERE.parent)  # its memory is not ours
    if said.returncode:
        raise SystemExit(said.stderr)
    wrote = time.perf_counter() - started
    tree = loaded.dump()
    short = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    tree["model"] |= {
        "checkpoint": str(place),
        "base_adapter": None,
        "network": None,
        "revision": None,
        "variant": None,
    }
    tree["model"]["dtype"] = {"network": short, "text": short, "vae": short}
    tree["hooks"], tree["evaluate"] = {"progress": {}, "metrics": {}}, None
    tree["train"] |= {"num_updates": updates}
    planned = foretold(tree, folder) if fraction == 1 else None  # rewards are as published at full size alone
    gc.collect()
    training = Training()
    with standing_in(training, small=fraction != 1):
        run = align.train(tree, output=str(folder / "run"))
    held = training.peak()
    found = {
        "recipe": recipe,
        "checkpoint": checkpoint,
        "fraction": str(fraction),
        "millions": round(int(said.stdout.split()[-1]) / 1e6, 1),
        "dtype": dtype,
        "settings": words,
        "seconds": [round(record["seconds"], 1) for record in run.metrics],
        "outcomes": [record["outcome"] for record in run.metrics],
        "peak_gib": round(max(training.before, peak_gib()), 2),
        "training_gib": None if held is None else round(held, 2),
        "planned_gib": planned,
        "machine": f"{place_of_work()}, torch {torch.__version__}",
        "written_seconds": round(wrote, 1),
    }
    gc.collect()
    return found | used(run, place, dtype) | {"exports": exported(run, folder / "exports")}


def used(run: Any, place: Path, dtype: str) -> dict[str, Any]:
    """The adapter in the stock pipeline: how many tensors came over, none of them changed, and that it draws."""
    import diffusers as typed
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    diffusers: Any = typed
    file = load_file(run.output / runs.ADAPTER / FILE_NAME)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(place, dtype=getattr(torch, dtype), local_files_only=True)
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    if hasattr(pipeline, "load_lora_weights"):
        pipeline.load_lora_weights(str(run.output / runs.ADAPTER), adapter_name="align")
    else:  # PixArt's has none: as its card says
        attach(network, run.output / runs.ADAPTER, component="transformer", strength=1.0)
    held = get_peft_model_state_dict(network, adapter_name="align")
    same = sum(
        torch.equal(file[f"{part}.{name}"].to(value.dtype), value.cpu())
        for name, value in held.items()
        for part in ("unet", "transformer")
        if f"{part}.{name}" in file
    )
    if same != len(file):
        raise SystemExit(f"{same} of {len(file)} tensors of the adapter are in the stock pipeline as they were saved.")
    pipeline.set_progress_bar_config(disable=True)
    drawn = stock(run.recipe).put_on(pipeline)("a red star", num_inference_steps=2, output_type="latent").images
    moved = sum(bool(value.any()) for name, value in file.items() if "lora_B" in name)
    return {"adapter_tensors": len(file), "moved": moved, "drawn": bool(torch.isfinite(torch.as_tensor(drawn)).all())}


def exported(run: Any, folder: Path) -> list[str]:
    """The forms that the adapter was written in; all but the merged one, which is a second network."""
    forms = [*model_family(run.recipe.model).layouts, "peft"]
    for form in forms:
        export(run.output, form, folder / form)
    return forms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="settings, as `align train` takes them")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--fraction", type=Fraction, default=Fraction(1), help="of the network, such as 1/10")
    parser.add_argument("--updates", type=int, default=1)
    parser.add_argument("--rows", type=Path, help="a file that the JSON line is added to, for rehearsal_page.py")
    parser.add_argument("--keep", type=Path, help="a new folder for all that is written; default: one that is removed")
    arguments = parser.parse_intermixed_args()
    if arguments.keep and arguments.keep.exists():
        parser.error(f"--keep {arguments.keep}: there is something already. Name another folder.")
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="rehearsal-"))
    told = {name: getattr(arguments, name) for name in ("dtype", "fraction", "updates")}
    try:
        line = json.dumps(rehearse(arguments.recipe, arguments.overrides, folder, **told))
        print(line, flush=True)
        if arguments.rows:
            with arguments.rows.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
