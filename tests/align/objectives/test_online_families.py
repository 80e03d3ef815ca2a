"""Online RL on flows, tiny: what was drawn is what is trained under every law, and images noised again teach."""

import importlib

import pytest
import torch
from group_toys import bright, groups
from pair_toys import gradients

from align.objectives._base import Parts
from align.objectives.dgpo import DGPO
from align.objectives.grpo import GRPO
from align.objectives.nft import NFT
from align.policy.cast import gather
from align.policy.lora import AdapterConfig
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.registry import MODELS
from align.sampling import SamplingConfig

FAMILIES = ("sd3", pytest.param("flux2", marks=pytest.mark.slow))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    parts = importlib.import_module(f"tiny_families.{request.param}")
    family = MODELS.get(request.param)
    settings = getattr(parts, "SETTINGS", {})
    return family(family.Config(checkpoint="tiny", **settings), parts.build(family.published[0]))


def policy_on(model) -> Policy:
    for name in ("default", "old"):
        if getattr(model.network, "peft_config", None) and name in model.network.peft_config:
            model.network.delete_adapters(name)
    adapter = Adapter(AdapterConfig(rank=2), model.network, list(model.lora_targets), seed=0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return Policy(model, adapter)


@pytest.mark.parametrize("law", ["cps", "flow_sde", "dance_sde", "ddim"])
def test_a_step_is_trained_as_it_was_drawn(model, law):
    sampling = SamplingConfig(num_steps=4, step_rule="euler", noise_law=law, guidance_scale=1.0)
    policy = policy_on(model)
    method = GRPO(GRPO.Config(guard=True, kl=0.1), Parts(model, sampling, bright(), 0))
    batch = next(iter(groups(policy, method.wanted, sampling=sampling)))
    loss = method(policy, batch)
    assert not loss.metrics["ratio_gap"].any() and loss.metrics["kl"].min() > 0
    method.after_update(lambda rows: rows)
    assert gradients(policy, loss).norm() > 0


@pytest.mark.parametrize("kind", [NFT, DGPO])
def test_images_are_noised_and_compared(model, kind):
    sampling = SamplingConfig(num_steps=3, step_rule="euler", guidance_scale=1.0)
    policy = policy_on(model)
    method = kind(kind.Config(num_draws=2), Parts(model, sampling, bright(), 0))
    gather(policy, method)
    batch = next(iter(groups(policy, method.wanted, sampling=sampling)))
    rows = method.noised(batch)
    torch.testing.assert_close(rows.x0_hat(rows.u), rows.x0, rtol=1e-3, atol=1e-3)
    loss = method(policy, batch)
    assert loss.per_sample.isfinite().all() and gradients(policy, loss).norm() > 0
