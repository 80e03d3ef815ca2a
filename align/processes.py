"""The processes of a launch, as accelerate or torchrun started them."""

from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others. NCCL's own 10 minutes are less than one process may need for its share of
the pairs, or the main one to check a cache; one that died is seen by the launcher at once."""


def join() -> Accelerator:
    """This process among the others; autocast and loss scaling are the trainer's."""
    return Accelerator(mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
