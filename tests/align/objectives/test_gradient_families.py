"""The objectives that differentiate a reward, on tiny published architectures: a VP table and a flow, an adapter in the
network; losses are finite, the adapter has a gradient, and an update does not depend on how it is cut."""

import importlib
from typing import Any

import pytest
import torch
from pair_toys import gradients

from align.data.prompts import PromptBatch
from align.objectives._base import Parts
from align.policy.cast import gather
from align.policy.lora import AdapterConfig
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.registry import MODELS, OBJECTIVES
from align.sampling import SamplingConfig
from rewards import Composite, Reward, RewardConfig

BATCH = PromptBatch(("a cat", "two", "abc"), (4, 5, 6), 2)
METHODS: dict[str, list[dict[str, Any]]] = {
    "adjusted_dft": [{}, {"sampling": {"step_rule": "dpmpp_2m"}}],
    "leapalign": [{}],
    "fairness": [{"attributes": {"a": 0.25, "abcd": 0.75}, "uncertainty": 0.45, "preserve": 1.0}],
    "unlearn": [{"concepts": {"cat": "dog"}, "target": target} for target in ("anchor", "negative", "adversarial")],
    "srpo": [{"words": [["bright", "dark"]]}, {"words": [["long", "b"]], "mix": 1.0, "cfg_grad": "cond"}],
    "adjoint_matching": [
        {"num_trained": 3, "sampling": {"eta": 1.0, "step_rule": "ddim"}},
        {"guided": "everything", "num_trained": 1, "sampling": {"noise_law": "ddim"}},
    ],
    "flowbp": [{"active": 2}, {"form": "bridge", "active": 3}, {"form": "lagrange", "cfg_grad": "both"}],
}
"""Each with {the objective's settings, "sampling": the block's}."""
CASES = [
    pytest.param(name, case, id="-".join([name, *(f"{k}={v}" for k, v in case.items())]))
    for name, cases in METHODS.items()
    for case in cases
]


class Reader(Reward):
    """The pixels' mean, more of it the longer the prompt."""

    Config = RewardConfig

    def forward(self, images, prompts):
        return images.flatten(1).mean(1) * torch.tensor([1.0 + len(prompt) for prompt in prompts])


@pytest.fixture(scope="module", params=["sd", "sd3"])
def model(request, tiny_sd_factory):
    family = MODELS.get(request.param)
    if request.param == "sd":
        return family(family.Config(checkpoint="tiny"), tiny_sd_factory())
    parts = importlib.import_module(f"tiny_families.{request.param}")
    return family(family.Config(checkpoint="tiny", **getattr(parts, "SETTINGS", {})), parts.build(family.published[0]))


def made(model: Any, name: str, case: dict[str, Any]) -> tuple[Any, Policy]:
    """(objective, policy whose adapter is no identity), anew on the model."""
    known = getattr(model.network, "peft_config", None) or {}
    model.network.delete_adapters(list(known)) if known else None
    adapter = Adapter(AdapterConfig(rank=2), model.network, list(model.lora_targets), seed=0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    case = dict(case)
    rule = "ddim" if model.kind == "epsilon" else "euler"
    block = {"num_steps": 4, "step_rule": rule, "guidance_scale": 2.0} | case.pop("sampling", {})
    kind = OBJECTIVES.get(name)
    policy = Policy(model, adapter)
    rewards = Composite({"reader": Reader(RewardConfig(), name="reader")})
    objective = kind(kind.Config(**case), Parts(model, SamplingConfig(**block), rewards, 3))
    gather(policy, objective)
    return objective, policy


def updated(objective: Any, policy: Policy, cuts: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """(per-sample losses, the adapter's gradient of their weighted sum) of an update that is cut so."""
    before = getattr(objective, "before_update", None)
    context = before(policy, cuts, lambda rows: rows) if before else None
    losses, gradient = [], torch.zeros(())
    for batch in cuts:
        loss = objective(policy, batch, context)
        losses.append(loss.per_sample.detach())
        gradient = gradient + gradients(policy, loss._replace(per_sample=loss.weight * loss.per_sample)) * len(batch)
    return torch.cat(losses), gradient


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_adapter_learns_and_the_cut_changes_nothing(model, name, case):
    whole = updated(*made(model, name, case), [BATCH])
    assert whole[0].shape == (3,) and whole[0].isfinite().all()
    assert whole[1].isfinite().all() and whole[1].norm() > 0
    cut = updated(*made(model, name, case), [BATCH[:1], BATCH[1:]])
    torch.testing.assert_close(cut[0], whole[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(cut[1], whole[1], rtol=2e-2, atol=2e-3 * float(whole[1].abs().max()))
