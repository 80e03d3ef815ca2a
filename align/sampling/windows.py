"""Which steps carry gradient, as a sampling block says."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samplers import GradPolicy


def policy(block: Any) -> "GradPolicy":
    """The gradient window of a SamplingConfig, and what is kept of its calls."""
    import samplers

    chosen = {
        "last": lambda: samplers.last(min(block.last_k, block.num_calls)),
        "contiguous": lambda: samplers.contiguous(block.min_k, block.max_k or block.num_calls),
        "bernoulli": samplers.bernoulli,
        "normal": lambda: samplers.normal(block.normal_mean, block.normal_std),
        "subset": lambda: samplers.subset(block.subset_k),
        "full": samplers.full,
    }[block.window]()
    reversible = block.memory == "reversible"
    return samplers.GradPolicy(
        chosen.keep, detach_input=block.detach_input, checkpoint=block.checkpoint_steps, reversible=reversible
    )
