"""train.compile=prefix: the calls before the gradient's window take compiled code, and all others the network's own."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from align.config import load_recipe
from align.errors import UserError
from align.models._base import DiffusionModel
from align.models.sd import SDConfig, StableDiffusion
from align.plan.verdict import compiled
from align.policy.lora import AdapterConfig
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.sampling import SamplingConfig, rollout
from samplers import FlowSchedule, Prediction, Rng, constant, grids

BLOCK = SamplingConfig(num_steps=4, last_k=1, guidance_scale=2.0)


class Backend:
    """Runs what dynamo has captured as it is, and counts: runs of it, and those under a gradient."""

    def __init__(self):
        self.graphs = self.runs = self.kept = 0

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*args):
            self.runs += 1
            self.kept += torch.is_grad_enabled()
            return graph(*args)

        return run


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_out = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, cond):
        return self.to_out(torch.tanh(self.to_q(x) + cond))


class Toy(DiffusionModel):
    """Latents of one position; the network is two layers that carry adapters."""

    schedule, kind, lora_targets, image_size = FlowSchedule(), Prediction.FLOW, ("to_q", "to_out"), (1, 1)
    text = SimpleNamespace(encode=lambda prompts, grad=False: constant(torch.full((len(prompts), 1), 0.3)))

    def __init__(self):
        torch.manual_seed(0)
        self.network = Network()

    def predict(self, network, x_t, t, cond):
        return network(x_t.flatten(1), cond.tensors["mean"]).view_as(x_t)

    def latent_shape(self, image_size=None):
        return 4, 1, 1

    def grids(self, num_steps, latent_shape, step_rule, spacing=None):
        return grids.flow(num_steps)


def sd(factory, blocks):
    return StableDiffusion(SDConfig(checkpoint="tiny", checkpoint_blocks=blocks), factory())


def made(model, which):
    adapter = Adapter(AdapterConfig(rank=2), model.network, list(model.lora_targets), seed=0)
    moved(adapter, 0.1)
    return Policy(model, adapter, compiled=which)


@torch.no_grad()
def moved(adapter, by):
    """The weights, in place, as an optimiser moves them."""
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters():
        parameter += by * torch.randn(parameter.shape, generator=generator)


def update(policy):
    """(x0, the adapter's gradient) of an update of DRaFT-1."""
    parameters = list(policy.adapter.parameters())
    x0 = rollout(
        BLOCK, policy.model, policy.role("train"), ["a star", "b"], Rng(0, [0, 1]), grad=BLOCK.grad_policy()
    ).x0
    with policy.backward():
        found = torch.autograd.grad(x0.square().mean(), parameters, allow_unused=True)
    return x0.detach(), torch.cat([one.flatten() for one in found if one is not None])


SLOW = pytest.mark.slow


@pytest.mark.parametrize("family", ["toy", pytest.param("sd", marks=SLOW), pytest.param("sd in blocks", marks=SLOW)])
def test_only_the_calls_before_the_window_are_compiled_and_the_numbers_are_the_same(family, request):
    factory = None if family == "toy" else request.getfixturevalue("tiny_sd_factory")
    eager, policy = (made(sd(factory, "blocks" in family) if factory else Toy(), which) for which in (False, "prefix"))
    backend = Backend()
    expected = update(eager)
    torch._dynamo.reset()
    counters.clear()
    policy.model.compile(backend=backend)
    torch.testing.assert_close(update(policy), expected, rtol=1e-5, atol=1e-5)
    blocks = sum(module._compiled_call_impl is not None for module in policy.model.network.modules())
    graphs = counters["stats"]["unique_graphs"]
    each = backend.runs // 3  # of the three calls before the window
    assert blocks > 0 and graphs == backend.graphs > 0 and each >= blocks and backend.runs == 3 * each
    assert backend.kept == 0
    for one in (eager, policy):
        moved(one.adapter, 0.2)
    after = update(eager)
    assert (after[0] - expected[0]).abs().max() > 1e-3  # the weights that moved in place matter
    torch.testing.assert_close(update(policy), after, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == graphs and backend.runs == 6 * each  # nothing is compiled anew
    with policy.uncounted(), torch.no_grad():
        rollout(BLOCK, policy.model, policy.role("train"), ["a"], Rng(0, [0]))
    with torch.no_grad():
        rollout(BLOCK, policy.model, policy.role("reference"), ["a"], Rng(0, [0]))
    assert backend.runs == 6 * each
    torch.testing.assert_close(update(policy), after, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == graphs and backend.runs == 9 * each


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        ("nft/shapes", {}, "train.compile: is prefix, and nft has no steps before a gradient. Set it to true"),
        ("draft/shapes", {"sampling.window": "full"}, "train.compile: is prefix, and every step carries gradient"),
        ("draft/shapes", {"sampling.last_k": 10, "sampling.num_steps": 10}, "every step carries gradient"),
        ("draft/shapes", {"train.compile": "window"}, "train.compile"),
        ("draft/sd15_aesthetic", {"model.offload": "group"}, "does not go with train.compile=prefix"),
    ],
)
def test_where_there_is_no_prefix_it_is_refused(recipe, changes, said):
    with pytest.raises(UserError, match=said):
        load_recipe(recipe, {"train.compile": "prefix", **changes})


def test_the_plan_says_what_is_compiled():
    changes = {"sampling.num_steps": 6, "sampling.last_k": 2, "train.compile": "prefix"}
    said = compiled(load_recipe("draft/shapes", changes))
    assert said == "the network, in 4 of 6 calls, which carry no gradient; all others run as they are"
