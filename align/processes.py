"""The processes of a launch, as accelerate or torchrun started them; what a launcher asks for is followed or refused.

The recipe decides what is computed, so that a run does not depend on how it was started. Launchers hand their flags
over in environment variables; one that asks for something else than the recipe is refused by name.
"""

import os
from datetime import timedelta
from typing import Any

import accelerate
from accelerate import utils
from accelerate.utils import InitProcessGroupKwargs

from align import sharding
from align.errors import UserError

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others. NCCL's own 10 minutes are less than one process may need for its share of
the pairs, or the main one to check a cache; one that died is seen by the launcher at once."""

PLUGINS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "ACCELERATE_USE_TP": "tensor parallelism",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
"""What accelerate can wrap a model in, and is not used here: only adapters are trained, and a frozen network is cut by
FSDP alone."""
FSDP = "ACCELERATE_USE_FSDP"
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Where launchers say how many processes they started; the first that is set counts."""


class Accelerator(accelerate.Accelerator):
    """accelerate's; before processes meet, those with calls of a shared network left are helped with them."""

    def gather(self, tensor: Any) -> Any:
        sharding.idle()
        return super().gather(tensor)

    def reduce(self, tensor: Any, reduction: str = "sum", scale: float = 1.0) -> Any:
        sharding.idle()
        return super().reduce(tensor, reduction, scale)

    def wait_for_everyone(self) -> None:
        sharding.idle()
        super().wait_for_everyone()


def gather_object(listed: list[Any]) -> list[Any]:
    """accelerate's: the lists of all processes as one, on all of them."""
    sharding.idle()
    return utils.gather_object(listed)


def broadcast_object_list(listed: list[Any]) -> list[Any]:
    """accelerate's: the main process's list, on all of them."""
    sharding.idle()
    return utils.broadcast_object_list(listed)


def sharded() -> bool:
    """Whether the launcher asks that the network is cut over the processes (recipes/accelerate/fsdp.yaml)."""
    return _on(FSDP)


def join(train: Any, *, cuts: bool = False) -> Accelerator:
    """This process among the others, if the launcher asks for what the recipe's block `train` says; autocast and loss
    scaling are the trainer's. `cuts`: what follows can do with a network that is cut over the processes."""
    heed(mixed_precision=train.mixed_precision, compiled=bool(train.compile))
    for variable, plugin in PLUGINS.items():
        if _on(variable):
            raise UserError(
                f"the launcher asks for {plugin} ({variable}), which is not followed: only adapters are trained, so "
                "there is no optimiser state worth cutting. For a network larger than one GPU launch with "
                "recipes/accelerate/fsdp.yaml; for less memory see model.quantize, model.checkpoint_blocks and "
                "train.micro_batch_size."
            )
    if sharded():
        _heed_fsdp(cuts)
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


def _heed_fsdp(cuts: bool) -> None:
    """Refuses of FSDP what is not followed."""
    if not cuts:
        raise UserError(
            f"the launcher asks for FSDP ({FSDP}), which only `align train` and `align pairs` follow. Launch this "
            "command with recipes/accelerate/multi_gpu.yaml."
        )
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "the launcher asks for FSDP of version 1. Set fsdp_version: 2, as recipes/accelerate/fsdp.yaml."
        )
    if _on("FSDP_OFFLOAD_PARAMS"):
        raise UserError(
            "the launcher asks to keep parameters in CPU memory (fsdp_offload_params), and the recipe decides. Set it "
            "to false, as in recipes/accelerate/fsdp.yaml, and model.offload=group."
        )


def shares(recipe: Any, accelerator: Accelerator) -> int | None:
    """How many processes share the recipe's network: all under FSDP, one where it comes from CPU memory block by block;
    None: it is not cut. UserError where the recipe asks for what a shared network does not allow."""
    if not sharded() or accelerator.num_processes == 1:
        return 1 if getattr(recipe.model, "offload", None) else None
    for block, key, why in (
        ("model", "quantize", "quantised weights are not cut"),
        ("train", "compile", "a compiled network does not stop for its blocks"),
        ("train", "auto_micro_batch", "a call that ran out of memory leaves a block half gathered"),
    ):
        if (value := getattr(getattr(recipe, block), key, None)) not in (None, False):
            raise UserError(
                f"{block}.{key}={str(value).lower()} and the launcher's FSDP do not go together: {why}. Unset it, or "
                "launch with recipes/accelerate/multi_gpu.yaml."
            )
    return accelerator.num_processes


def cut(network: Any, recipe: Any, accelerator: Accelerator) -> None:
    """Cuts the network, all adapters being on it, where the launcher or the recipe asks for it."""
    if (number := shares(recipe, accelerator)) is not None:
        offload = getattr(recipe.model, "offload", None) is not None
        sharding.shard(network, accelerator.device, number, PATIENCE, offload=offload)


def _started() -> tuple[str, int] | None:
    """(variable, number) of the processes that the launcher says it started."""
    for variable in SIZES:
        if (text := os.environ.get(variable, "")).isdigit():
            return variable, int(text)
    return None


def _on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1", "yes", "y", "t", "on")
