"""A frozen network cut over the processes by FSDP2, each block gathered for its call and let go after it.

    memory a process = parameters / processes + the largest block + the adapters, which every process holds whole

Adapters stay plain tensors: their gradients are summed as ever, and a checkpoint or an export has nothing to gather.

Gathering a block takes all processes at once, and they do not call the network equally often: rows are dropped, a
panel's pictures are shared out, samples are drawn by one. So they take turns. A process says which block it needs; the
lowest one that anybody has named is gathered by all, and kept by those who named it. Who has no more calls before a
collective says so (`idle`) and gathers with the others until nobody needs a block. No method has to know.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

IDLE = -1
_turns: "Turns | None" = None
_by_itself = False


def idle() -> None:
    """Before all that processes do together: waits until no other one needs a block, helping meanwhile."""
    if _turns is not None:
        _turns.idle()


def leave() -> None:
    """At the end of a command that went well: all processes end together. One that is still talking when another has
    ended is aborted by the group's threads."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        idle()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def shard(
    network: nn.Module, device: torch.device, num_processes: int, patience: timedelta, *, offload: bool = False
) -> None:
    """Cuts every parameter but those of adapters over `num_processes`, in place, block after block, so that a GPU never
    holds all of them: `network` may still be in CPU memory. All adapters must be on it already. `offload`: shares stay
    in CPU memory and come to `device` to be gathered, which for one process is all that there is to do."""
    global _turns
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    own = {p for name, p in network.named_parameters() if ".lora_" in name}
    for parameter in own:
        parameter.data = parameter.data.to(device)
    found = units(network)
    policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
    more: Any = {"mesh": _mesh(device, num_processes), "offload_policy": policy, "ignored_params": own}
    for unit in found:
        fully_shard(unit, reshard_after_forward=True, **more)
    network._get_fsdp_state()._lazy_init()  # type: ignore[operator]  # else by the first call: some may have none
    for unit in found:
        unit.register_forward_hook(_let_go)
    if num_processes > 1:
        _turns = Turns(found, patience)


def _mesh(device: torch.device, num_processes: int) -> Any:
    """The processes that share a network; where each has one of its own, each by itself."""
    global _by_itself
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if not dist.is_initialized():
        dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        _by_itself = True
    shape = dist.get_world_size() // num_processes, num_processes
    return init_device_mesh(device.type, shape, mesh_dim_names=("copies", "shares"))["shares"]


def _let_go(block: Any, inputs: Any, output: Any) -> None:
    """After a call within a backward pass whose block is not itself on its way back: FSDP keeps it, and of a network
    that is recomputed as a whole it would keep all. torch has no public word for either condition."""
    groups = block._get_fsdp_state()._fsdp_param_groups
    if torch._C._current_graph_task_id() != -1 and all(g._training_state.name != "PRE_BACKWARD" for g in groups):
        block.reshard()


@contextmanager
def released() -> Iterator[None]:
    """Forgets, after what is inside, a network that was cut there, and leaves the group of one process made for it."""
    global _turns, _by_itself
    try:
        yield
    finally:
        if _by_itself:
            torch.distributed.destroy_process_group()
        _turns, _by_itself = None, False


def gathered(network: nn.Module, size: Callable[[nn.Module], int]) -> int:
    """Bytes of the frozen weights that a device holds at most, where no share stays on it: what belongs to no block,
    the largest block with what is in it, and another on its way. `size`: bytes of a module's weights."""
    found = {id(unit): size(unit) for unit in units(network)}
    inner = {id(unit): [m for m in unit.modules() if m is not unit and id(m) in found] for unit in units(network)}

    def own(unit: nn.Module) -> int:
        below = inner[id(unit)]
        nested = {id(m) for each in below for m in inner[id(each)]}
        return found[id(unit)] - sum(found[id(m)] for m in below if id(m) not in nested)

    blocks = [unit for unit in units(network) if unit is not network]
    chains = [own(unit) + max((own(m) for m in inner[id(unit)]), default=0) for unit in blocks]
    return own(network) + max(chains, default=0) + max((own(unit) for unit in blocks), default=0)


def units(network: nn.Module) -> list[nn.Module]:
    """What is gathered at once, inner ones first: the blocks that diffusers says repeat, the levels of a UNet, and at
    last the network with what is left."""
    repeated = tuple(getattr(network, "_repeated_blocks", None) or ())
    listed = {id(block) for child in network.children() if isinstance(child, nn.ModuleList) for block in child}
    chosen = [m for m in network.modules() if m is not network and (type(m).__name__ in repeated or id(m) in listed)]
    return [unit for unit in [*reversed(chosen), network] if any(True for _ in unit.parameters())]


class Turns:
    """The order in which blocks are gathered, `blocks` being the same list on every process."""

    def __init__(self, blocks: list[nn.Module], patience: timedelta):
        from torch.distributed import get_world_size, new_group

        self.group: Any = new_group(backend="gloo", timeout=patience)  # by the CPU: no GPU is waited for
        self.heard = [torch.zeros(1, dtype=torch.int64) for _ in range(get_world_size())]
        self.blocks: list[Any] = blocks
        for number, block in enumerate(self.blocks):
            self._watch(number, block)

    def idle(self) -> None:
        while (number := self._ask(IDLE)) is not None:
            self._gather(number, keep=False)

    def need(self, number: int) -> None:
        """Has block `number` gathered, if it is not: no gathering of FSDP's own is left to do."""
        while cut(self.blocks[number]) and (next_one := self._ask(number)) is not None:
            self._gather(next_one, keep=next_one == number)

    def _ask(self, number: int) -> int | None:
        """The lowest block that a process needs; None: none needs any."""
        import torch.distributed as dist

        dist.all_gather(self.heard, torch.tensor([number]), group=self.group)
        return min((int(each) for each in self.heard if int(each) != IDLE), default=None)

    def _gather(self, number: int, *, keep: bool) -> None:
        block, held = self.blocks[number], not cut(self.blocks[number])
        if held:  # in use here: gathered once more for another process, into the same memory
            block.reshard()
        block.unshard()
        if not held and not keep:
            block.reshard()

    def _watch(self, number: int, block: Any) -> None:
        """Asks before FSDP would gather by itself, at the block's call and at its backward pass."""

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            if torch.is_grad_enabled():
                for tensor in _tensors(output):
                    if tensor.requires_grad:
                        tensor.register_hook(lambda grad: self.need(number))

        block.set_modules_to_backward_prefetch([block])  # none ahead of its turn
        block.register_forward_pre_hook(lambda module, inputs: self.need(number), prepend=True)
        block.register_forward_hook(after, prepend=True)


def cut(block: Any) -> bool:
    """Whether a unit's weights are shares now; else they are gathered."""
    from torch.distributed.tensor import DTensor

    info = block._get_fsdp_state()._fsdp_param_groups[0].fsdp_params[0]._module_info
    return isinstance(info.module._parameters[info.param_name], DTensor)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
