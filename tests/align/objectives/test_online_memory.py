"""What online training keeps for its backward pass is one call of the network, however many steps the sampler takes."""

import pytest
import torch
from group_toys import bright, groups
from pair_toys import policy_on
from torch.autograd.graph import saved_tensors_hooks

from align.data._base import micro_batches
from align.objectives._base import Parts
from align.objectives.awm import AWM
from align.objectives.ddpo import DDPO
from align.objectives.dgpo import DGPO
from align.objectives.grpo import GRPO
from align.objectives.nft import NFT
from align.policy.cast import gather
from align.sampling import SamplingConfig


@pytest.fixture
def policy(tiny_sd_factory):
    return policy_on(tiny_sd_factory())


def kept(policy, call) -> int:
    """Bytes of the tensors that `call` saves for backward, each storage once, weights not."""
    weights = {p.untyped_storage().data_ptr() for p in policy.model.network.parameters()}
    found: dict[int, torch.Tensor] = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def of_a_micro_batch(kind, policy, num_steps: int) -> tuple[int, int]:
    """(bytes kept for the method's loss, rows of the micro-batch)."""
    sampling = SamplingConfig(num_steps=num_steps, guidance_scale=1.0, eta=1.0)
    settings = {} if kind in (DDPO, GRPO) else {"num_draws": 2}
    method = kind(kind.Config(**settings), Parts(policy.model, sampling, bright(), 0))
    gather(policy, method)
    update = next(iter(groups(policy, method.wanted, sampling=sampling)))
    batch = next(iter(micro_batches(update, 6)))
    return kept(policy, lambda: method(policy, batch)), len(batch.prompts)


@pytest.mark.parametrize("kind", [NFT, AWM, DGPO, GRPO, DDPO])
def test_it_does_not_grow_with_the_number_of_steps(kind, policy, tiny_sd_factory):
    few, rows = of_a_micro_batch(kind, policy, 3)
    many, same = of_a_micro_batch(kind, policy_on(tiny_sd_factory()), 9)
    assert rows == same and many <= 1.02 * few

    model = policy.model
    x, t = torch.randn(rows, *model.latent_shape()), torch.full((rows,), 0.5, dtype=torch.float64)
    cond = model.text.encode(["a"] * rows)
    one = kept(policy, lambda: policy.role("train")(x, t, cond).square().mean())
    assert few <= 1.1 * one, "one call of the network, and what the loss itself takes"
