"""The processes of a launch, as accelerate or torchrun started them."""

import os
from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from align.errors import UserError

LAUNCHED = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Where torchrun, accelerate and MPI say how many they have started."""

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others. NCCL's own 10 minutes are less than one process may need for its share of
the pairs, or the main one to check a cache; one that died is seen by the launcher at once."""


def join() -> Accelerator:
    """This process among the others; autocast and loss scaling are the trainer's."""
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    for name in LAUNCHED:
        said = os.environ.get(name, "")
        if said.isdigit() and int(said) not in (0, accelerator.num_processes):
            raise UserError(
                f"{name}={said}, but {accelerator.num_processes} joined: each would train the whole run and "
                "write the same folder. On a machine without GPUs start them with ACCELERATE_USE_CPU=1 torchrun "
                f"--nproc_per_node {said} -m align ..., or start one."
            )
    return accelerator
