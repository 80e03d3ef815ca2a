"""model.checkpoint_blocks: blocks that the backward pass computes again take the adapters that the call had, whatever
has been switched since. With them every gradient is to the last bit what it is without."""

import importlib

import pytest
import torch
from align_toys import randomise

from align.policy.cast import Frozen, Snapshot, Trained, gather
from align.policy.lora import AdapterConfig
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.registry import MODELS

diffusers = pytest.importorskip("diffusers")


class Wants:
    """An objective, as far as its cast goes."""

    def __init__(self, **adapters):
        self.adapters, self.roles = adapters, {"mix": {"default": 1.0, "fake": -0.5}}


@pytest.fixture(scope="module", params=["sd", "sd3"])
def family(request):
    diffusers.logging.set_verbosity_error()
    return request.param


@pytest.fixture(scope="module")
def stranger(family, tmp_path_factory):
    """An adapter of another rank in a file, for the role of a frozen one."""
    folder = tmp_path_factory.mktemp("stranger")
    model = built(family, False)
    component = "unet" if hasattr(model.network, "conv_in") else "transformer"
    adapter = Adapter(AdapterConfig(rank=3), model.network, list(model.lora_targets), component=component)
    randomise(adapter, 7)
    adapter.export(folder)
    return component, folder


def built(family, blocks):
    tiny, bundle = importlib.import_module(f"tiny_families.{family}"), MODELS.get(family)
    torch.manual_seed(0)
    config = bundle.Config(checkpoint="tiny", checkpoint_blocks=blocks, **tiny.SETTINGS)
    return bundle(config, tiny.build(bundle.published[0]))


def gradients(family, stranger, blocks, value, **config):
    """{adapter: its gradient of value(policy, x, t, cond)}, with the roles' ends weighted by fixed random numbers."""
    tiny, (component, folder) = importlib.import_module(f"tiny_families.{family}"), stranger
    model = built(family, blocks)
    settings = AdapterConfig(**{"rank": 2, **config})
    adapter = Adapter(settings, model.network, list(model.lora_targets), component=component)
    randomise(adapter)
    policy = Policy(model, adapter)
    gather(policy, Wants(fake=Trained(), old=Snapshot(), style=Frozen(str(folder))))
    randomise(policy.adapters["fake"], 1)
    randomise(policy.adapters["old"], 2)
    adapter.train()
    x = torch.randn(2, *model.latent_shape(tiny.SIZES[0]), generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.no_grad():
        cond = model.text.encode(["a red circle", "two stars"])
    torch.manual_seed(3)
    value(policy, x, torch.tensor([0.3, 0.7], dtype=torch.float64), cond).backward()
    found = {n: [p.grad for p in a.parameters()] for n, a in policy.adapters.items() if a.parameters()[0].requires_grad}
    return {**found, "x": [x.grad]}


def same(a, b):
    assert a.keys() == b.keys() and {"default", "fake"} <= a.keys()
    for name, tensors in a.items():
        for found, wanted in zip(tensors, b[name], strict=True):
            assert (found is None) == (wanted is None), name
            assert found is None or torch.equal(found, wanted), name


def each(names):
    """Every role's output from the same noise, one after another, in one graph."""

    def value(policy, x, t, cond):
        return sum((k + policy.role(name)(x, t, cond).sin()).square().sum() for k, name in enumerate(names))

    return value


@pytest.mark.parametrize("names", [("train", "fake"), ("fake", "reference", "train"), ("mix", "old", "style", "train")])
@pytest.mark.parametrize("config", [{}, {"dropout": 0.5}, {"dora": True}], ids=["lora", "dropout", "dora"])
def test_roles_in_one_graph(family, stranger, names, config):
    stored = gradients(family, stranger, False, each(names), **config)
    same(gradients(family, stranger, True, each(names), **config), stored)


def test_the_base_alone_carries_a_gradient_to_its_input(family, stranger):
    alone = each(("reference",))
    found, wanted = (gradients(family, stranger, blocks, alone)["x"][0] for blocks in (True, False))
    assert torch.equal(found, wanted)


def test_a_strength_set_around_the_call_is_computed_again_with(family, stranger):
    def value(policy, x, t, cond):
        with policy.adapter.scaled(0.5):
            half = policy.role("mix")(x, t, cond)
        return (half * policy.role("train")(x, t, cond)).sum()

    same(gradients(family, stranger, True, value), gradients(family, stranger, False, value))


def test_the_backward_pass_leaves_nothing_switched(family, stranger):
    seen = []

    def standing(policy):
        layers = [(m.active_adapters, dict(m.scaling), m.disable_adapters) for m in policy.adapter.layers]
        return layers, [p.requires_grad for p in policy.model.network.parameters()]

    def value(policy, x, t, cond):
        seen.append((policy, standing(policy)))
        return each(("fake", "reference", "mix"))(policy, x, t, cond)

    gradients(family, stranger, True, value)
    ((policy, before),) = seen
    assert standing(policy) == before
