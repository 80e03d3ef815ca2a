"""The processes of a launch, as accelerate or torchrun started them; what a launcher asks for is followed or refused.

The recipe decides what is computed, so that a run does not depend on how it was started. Launchers hand their flags
over in environment variables; one that asks for something else than the recipe is refused by name.
"""

import os
from datetime import timedelta
from typing import Any

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from align.errors import UserError

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others. NCCL's own 10 minutes are less than one process may need for its share of
the pairs, or the main one to check a cache; one that died is seen by the launcher at once."""

PLUGINS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "ACCELERATE_USE_TP": "tensor parallelism",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
"""What accelerate can wrap a model in, and is not used here: every process holds the whole frozen network."""
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Where launchers say how many processes they started; the first that is set counts."""


def join(train: Any) -> Accelerator:
    """This process among the others, if the launcher asks for what the recipe's block `train` says; autocast and loss
    scaling are the trainer's."""
    heed(mixed_precision=train.mixed_precision, compiled=train.compile)
    for variable, plugin in PLUGINS.items():
        if _on(variable):
            raise UserError(
                f"the launcher asks for {plugin} ({variable}), which is not followed: every process holds the whole "
                "frozen network, and only adapters are trained. Launch without it, as in recipes/accelerate; for less "
                "memory see model.quantize, model.checkpoint_blocks and train.micro_batch_size."
            )
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    started = _started()
    if started is not None and started[1] != accelerator.num_processes:
        raise UserError(
            f"{started[1]} processes were started ({started[0]}), but {accelerator.num_processes} joined, so each "
            "would do the whole work and write over the others. Without GPUs: ACCELERATE_USE_CPU=1 torchrun "
            f"--nproc_per_node {started[1]} -m align ...; or start one process."
        )
    return accelerator


def heed(*, mixed_precision: str, compiled: bool) -> None:
    """Refuses what a launcher asks for and the recipe's train block does not say."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", mixed_precision):
        way = f"Set train.mixed_precision={asked}" if asked in ("fp16", "bf16") else "Choose bf16 or fp16 in the recipe"
        raise UserError(
            f"the launcher asks for mixed_precision={asked}, and the recipe, which decides, says "
            f"train.mixed_precision={mixed_precision}. {way}, or launch with --mixed_precision no."
        )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", "auto"):
        raise UserError(
            f"the launcher asks for gradient_accumulation_steps={steps}: the recipe decides how an update is cut. Set "
            "train.batch_size, the rows of a whole update, and train.micro_batch_size, those of one pass."
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend not in ("no", "") and not compiled:
        raise UserError(
            f"the launcher asks for torch.compile (dynamo_backend={backend}), and the recipe, which decides, says "
            "train.compile=false. Set train.compile=true, or launch with --dynamo_backend no."
        )


def _started() -> tuple[str, int] | None:
    """(variable, number) of the processes that the launcher says it started."""
    for variable in SIZES:
        if (text := os.environ.get(variable, "")).isdigit():
            return variable, int(text)
    return None


def _on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1", "yes", "y", "t", "on")
