"""Roles: sets of adapters with weights on one network, on a UNet and on a flow transformer of random weights."""

import copy
import importlib

import pytest
import torch
from align_toys import randomise
from torch.utils.checkpoint import checkpoint

from align.policy.cast import Frozen, Snapshot, Trained, gather
from align.policy.lora import AdapterConfig
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.registry import MODELS

diffusers = pytest.importorskip("diffusers")
FAMILIES = ("sd", "sd3")


class Wants:
    """An objective, as far as its cast goes."""

    def __init__(self, roles=None, **adapters):
        self.adapters, self.roles = adapters, roles or {}


@pytest.fixture(scope="module", params=FAMILIES)
def stock(request):
    """(a bundle whose network nobody has touched, x_t, t, conditioning); tests take copies of the network."""
    diffusers.logging.set_verbosity_error()
    tiny, family = importlib.import_module(f"tiny_families.{request.param}"), MODELS.get(request.param)
    pipeline = tiny.build(family.published[0])
    model = family(family.Config(checkpoint="tiny", **tiny.SETTINGS), pipeline)
    x = torch.randn(2, *model.latent_shape(tiny.SIZES[0]), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cond = model.text.encode(["a red circle", "two stars"])
    return model, x, torch.tensor([0.3, 0.7], dtype=torch.float64), cond


def on(stock, objective=None, seed=0, **config):
    """(policy on a fresh copy of the network, its cast, the arguments of a call)."""
    model, *arguments = stock
    bundle = copy.copy(model)
    bundle.network = copy.deepcopy(model.network)
    adapter = Adapter(AdapterConfig(**{"rank": 2, **config}), bundle.network, list(model.lora_targets), seed=seed)
    randomise(adapter)
    policy = Policy(bundle, adapter)
    return policy, gather(policy, objective or Wants()), arguments


def base(stock):
    model, *arguments = stock
    return model.predict(model.network, *arguments)


def merged(stock, adapters):
    """The output of the network with {adapter: weight} added to its weights."""
    model, *arguments = stock
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        for adapter, weight in adapters.items():
            for name, layer in adapter.network.named_modules():
                if hasattr(layer, "lora_A") and adapter.name in layer.lora_A:
                    network.get_submodule(name).weight += weight * layer.get_delta_weight(adapter.name)
    return model.predict(network, *arguments)


def test_no_adapter_is_the_stock_network_bit_for_bit(stock):
    policy, _, arguments = on(stock, Wants({"nobody": {}}, fake=Trained()))
    randomise(policy.adapters["fake"], 1)
    for role in ("reference", "nobody"):
        assert torch.equal(policy.role(role)(*arguments), base(stock))


def test_a_role_is_the_network_with_its_adapters_merged(stock):
    policy, _, arguments = on(stock, Wants({"mix": {"default": 1.0, "fake": 0.5}}, fake=Trained()))
    randomise(policy.adapters["fake"], 1)
    own, fake = policy.adapter, policy.adapters["fake"]
    wanted = {"mix": {own: 1.0, fake: 0.5}, "train": {own: 1.0}, "fake": {fake: 1.0}}
    for role, adapters in wanted.items():
        found, expected = policy.role(role)(*arguments), merged(stock, adapters)
        assert float((found - expected).norm() / expected.norm()) < 1e-6
        assert not torch.equal(found, base(stock))
    expected = merged(stock, {own: 0.5, fake: 0.5})
    with own.scaled(0.5):  # a strength set around counts in every role
        found = policy.role("mix")(*arguments)
    assert float((found - expected).norm() / expected.norm()) < 1e-6
    with own.disabled():
        assert torch.equal(policy.role("mix")(*arguments), base(stock))


def test_a_call_leaves_nothing_switched(stock):
    policy, _, arguments = on(stock, Wants({"mix": {"default": 1.0, "fake": 0.5}}, fake=Trained(), old=Snapshot()))
    before = policy.role("train")(*arguments)
    flags = [p.requires_grad for p in policy.model.network.parameters()]
    for role in ("mix", "old", "reference", "fake"):
        policy.role(role)(*arguments)
        assert torch.equal(policy.role("train")(*arguments), before)
    assert [p.requires_grad for p in policy.model.network.parameters()] == flags


def test_adapters_outside_the_role_get_no_gradient(stock):
    policy, _, arguments = on(stock, Wants(fake=Trained(), old=Snapshot()))
    for role, name in (("fake", "fake"), ("train", "default")):
        policy.role(role)(*arguments).square().sum().backward()
        for other, adapter in policy.adapters.items():
            assert all((p.grad is not None) == (other == name) for p in adapter.parameters()), (role, other)
            for parameter in adapter.parameters():
                parameter.grad = None
    assert not policy.role("old")(*arguments).requires_grad
    assert all(p.grad is None for n, p in policy.model.network.named_parameters() if ".lora_" not in n)


def test_a_snapshot_stays_what_was_copied_while_its_original_moves_on(stock):
    kinds = {"start": Snapshot(), "hard": Snapshot(every=2), "mean": Snapshot(decay=0.75)}
    kinds |= {"ramp": Snapshot(decay=lambda step: 1 / step)}
    policy, cast, arguments = on(stock, Wants(**kinds))
    copied = policy.role("train")(*arguments)
    for name in kinds:
        assert torch.equal(policy.role(name)(*arguments), copied)
    history = [[p.detach().clone() for p in policy.adapter.parameters()]]
    for step in (1, 2, 3):
        randomise(policy.adapter, step)
        history.append([p.detach().clone() for p in policy.adapter.parameters()])
        for follower in cast.followers.values():
            follower.advance(step)
    assert torch.equal(policy.role("start")(*arguments), copied)
    expected = {"start": (1, 0, 0, 0), "hard": (0, 0, 1, 0)}
    expected |= {"mean": (0.75**3, 0.25 * 0.75**2, 0.25 * 0.75, 0.25), "ramp": (1 / 6, 0, 1 / 6, 2 / 3)}
    for name, shares in expected.items():
        for number, parameter in enumerate(policy.adapters[name].parameters()):
            wanted = sum(share * past[number] for share, past in zip(shares, history, strict=True))
            torch.testing.assert_close(parameter, wanted, rtol=1e-5, atol=1e-6)


def test_three_roles_cost_three_adapters_and_no_network(stock):
    plain = sum(p.numel() * p.element_size() for p in stock[0].network.parameters())
    policy, cast, _ = on(stock, Wants(fake=Trained(), old=Snapshot()))
    one = sum(p.numel() * p.element_size() for p in policy.adapter.parameters())
    assert sum(p.numel() * p.element_size() for p in policy.model.network.parameters()) == plain + 3 * one
    assert cast.held() * 4 == one


def test_a_recomputed_call_of_one_role_while_anothers_graph_waits(stock):
    """Both gradients against finite differences in float64, the recomputation happening in the other's backward."""
    policy, _, (x, t, cond) = on(stock, Wants(fake=Trained()))
    randomise(policy.adapters["fake"], 1)
    policy.model.network.double()
    x, cond = x.double(), cond.to(torch.float64)

    def value(recompute=False):
        roles = policy.role("train"), policy.role("fake")
        first, second = (
            checkpoint(role, x, t, cond, use_reentrant=False) if recompute else role(x, t, cond) for role in roles
        )
        return (first.sin() * second).sum()

    value(recompute=True).backward()
    for name in ("default", "fake"):
        for parameter in policy.adapters[name].parameters()[:2]:
            with torch.no_grad():
                direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)).to(parameter)
                ends = []
                for sign in (1, -1):
                    parameter += sign * 1e-5 * direction
                    ends.append(value())
                    parameter -= sign * 1e-5 * direction
            slope = float(ends[0] - ends[1]) / 2e-5
            assert float((parameter.grad * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_a_frozen_adapter_comes_from_a_file_of_any_rank(stock, tmp_path):
    other, _, arguments = on(stock, rank=3, alpha=7.0)
    component = "unet" if hasattr(stock[0].network, "conv_in") else "transformer"
    other.adapter.component = component
    other.adapter.export(tmp_path)
    policy, cast, _ = on(stock)
    policy.adapter.component = component
    cast = gather(policy, Wants(style=Frozen(str(tmp_path))))
    found, expected = policy.role("style")(*arguments), other.role("train")(*arguments)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert not found.requires_grad and policy.role("train")(*arguments).requires_grad
    assert cast.held() == sum(p.numel() for p in other.adapter.parameters())


def test_what_is_not_there_is_said():
    class Nothing:
        schedule = kind = None

    policy = Policy(Nothing())
    with pytest.raises(ValueError, match=r'there is no role "fake"\. Known: train, reference'):
        policy.role("fake")
    with pytest.raises(ValueError, match=r'role "mix": there is no adapter fake\. Known: '):
        policy.define("mix", {"fake": 1.0})
