"""The adapter: the base underneath it, its file, and what other loaders make of that file."""

import json

import pytest
import torch
from align_toys import ToyNetwork, toy_policy
from pydantic import ValidationError
from safetensors import safe_open

from align.errors import UserError
from align.policy import lora
from align.policy.lora import AdapterConfig
from align.policy.trainable import Adapter

X, T = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.tensor(0.3)
KINDS = [
    {"rank": 4, "alpha": 4},
    {"rank": 4, "alpha": 16},
    {"rank": 4, "alpha": 3, "rslora": True},
    {"rank": 4, "alpha": 10, "dora": True},
]


def base(seed: int = 0) -> ToyNetwork:
    torch.manual_seed(seed)
    return ToyNetwork()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_fresh_adapter_is_the_identity(kind):
    network = base()
    expected = network(X, T)
    Adapter(AdapterConfig(**kind), network, ["to_q", "to_out"], seed=0)
    torch.testing.assert_close(network(X, T), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_reference_and_strength_zero_are_the_base_bit_for_bit(kind):
    expected = base()(X, T)
    policy = toy_policy(0, **kind)
    assert not torch.equal(policy.role("train")(X, T, None), expected)
    assert torch.equal(policy.role("reference")(X, T, None), expected)
    with policy.adapter.scaled(0):
        assert torch.equal(policy.role("train")(X, T, None), expected)
    assert not torch.equal(policy.role("train")(X, T, None), expected)


def test_switching_off_may_be_nested():
    policy = toy_policy(0, rank=2)
    base_out = base()(X, T)
    with policy.adapter.disabled():
        policy.role("reference")(X, T, None)
        assert torch.equal(policy.role("train")(X, T, None), base_out)
    assert not torch.equal(policy.role("train")(X, T, None), base_out)


def test_strength_scales_the_update():
    policy = toy_policy(0, rank=2, targets=["to_out"])  # the last layer: the output is linear in the strength
    reference, full = policy.role("reference")(X, T, None), policy.role("train")(X, T, None)
    with policy.adapter.scaled(0.25):
        torch.testing.assert_close(policy.role("train")(X, T, None), reference + 0.25 * (full - reference))
    assert torch.equal(policy.role("train")(X, T, None), full)


def test_only_the_adapter_has_gradients_and_keeps_them_after_a_reference_call():
    policy = toy_policy(0, rank=2)
    trained = {id(p) for p in policy.adapter.parameters()}
    assert {id(p) for p in policy.model.network.parameters() if p.requires_grad} == trained
    policy.adapter.parameters()[0].requires_grad_(False)  # switching must put back what was, not what PEFT likes
    policy.role("reference")(X, T, None)
    flags = [p.requires_grad for p in policy.adapter.parameters()]
    assert flags == [False] + [True] * (len(flags) - 1)


def test_a_reference_call_between_forward_and_backward_changes_no_gradient():
    policy = toy_policy(0, rank=2)

    def gradients(with_reference: bool) -> list[torch.Tensor]:
        call = lambda x: policy.role("train")(x, T, None)  # noqa: E731
        out = torch.utils.checkpoint.checkpoint(call, X, use_reentrant=False)
        if with_reference:
            with torch.no_grad():
                policy.role("reference")(X, T, None)
        return list(torch.autograd.grad(out.square().sum(), policy.adapter.parameters()))

    for plain, mixed in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(plain, mixed)


def test_doras_norms_are_the_base_weights_to_float32_on_a_bfloat16_network():
    """Rounded to bf16 they are off by 4e-3, and a fresh adapter changes what the network says."""
    fresh = Adapter(AdapterConfig(rank=2, dora=True), base().bfloat16(), ["to_q", "to_out"], seed=0)
    for layer in fresh.layers:
        norms = layer.get_base_layer().weight.double().norm(dim=1)
        torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight.double(), norms, rtol=1e-6, atol=0)


def test_masters_are_float32_on_a_bfloat16_network():
    policy = toy_policy(0, dtype=torch.bfloat16, rank=2)
    assert {p.dtype for p in policy.adapter.parameters()} == {torch.float32}
    out = policy.role("train")(X.bfloat16(), T, None)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in policy.adapter.parameters())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_file_loads_where_alpha_is_unknown(kind, tmp_path):
    """As a loader does that ignores the metadata and takes alpha = rank: W0 + B A from the file's own tensors."""
    policy = toy_policy(0, **kind)
    expected = policy.role("train")(X, T, None)
    policy.adapter.export(tmp_path)
    plain = {"rank": 4, "dora": kind.get("dora", False)}
    other = Adapter(AdapterConfig(**plain), base(), ["to_q", "to_out"], seed=9)
    with safe_open(tmp_path / lora.FILE_NAME, framework="pt") as file:
        said = json.loads(file.metadata()[lora.METADATA_KEY])
        tensors = {name.removeprefix("unet."): file.get_tensor(name) for name in file.keys()}
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(other.network, tensors, adapter_name=lora.NAME)
    torch.testing.assert_close(other.network(X, T), expected, rtol=1e-5, atol=1e-6)
    assert (said["unet.r"], said["unet.lora_alpha"], said["unet.use_rslora"]) == (4, 4, False)


def test_equal_adapters_are_equal_files(tmp_path):
    files = set()
    for i in range(12):  # safetensors itself writes one of two orders
        toy_policy(0, rank=4).adapter.export(tmp_path / str(i))
        files.add((tmp_path / str(i) / lora.FILE_NAME).read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_init_takes_an_adapter_up_at_another_alpha(kind, tmp_path):
    policy = toy_policy(0, **kind)
    expected = policy.role("train")(X, T, None)
    policy.adapter.export(tmp_path)
    config = AdapterConfig(**{**kind, "alpha": 7.0}, init=str(tmp_path))
    other = Adapter(config, base(), ["to_q", "to_out"], seed=5)
    torch.testing.assert_close(other.network(X, T), expected, rtol=1e-5, atol=1e-6)


def test_init_that_does_not_fit_says_how(tmp_path):
    toy_policy(0, rank=4).adapter.export(tmp_path)
    with pytest.raises(UserError, match=r"adapter.init=.*\(4, 16\).*\(8, 16\).*adapter.rank"):
        Adapter(AdapterConfig(rank=8, init=str(tmp_path)), base(), ["to_q", "to_out"], seed=0)
    with pytest.raises(UserError, match="there is no file"):
        Adapter(AdapterConfig(init=str(tmp_path / "none.safetensors")), base(), ["to_q"], seed=0)


def test_full_fine_tuning_and_unknown_targets_are_refused_with_a_reason():
    with pytest.raises(ValidationError, match="full fine-tuning is not offered"):
        AdapterConfig.model_validate("full")
    with pytest.raises(UserError, match=r"adapter.targets: no layer is named to_k .*to_out, to_q"):
        Adapter(AdapterConfig(targets=["to_k"]), base(), ["to_q"], seed=0)


@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
def test_delta_norm_is_that_of_the_weights_own_change(kind):
    policy = toy_policy(0, **kind)
    before = [m.weight.clone() for m in base().modules() if isinstance(m, torch.nn.Linear)]
    squares = []
    for layer, weight in zip(policy.adapter.layers, before, strict=True):
        layer.merge()
        squares.append((layer.base_layer.weight - weight).square().sum())
        layer.unmerge()
    expected = float(torch.stack(squares).sum().sqrt())
    assert policy.adapter.metrics() == {"adapter_norm": pytest.approx(expected, rel=1e-4)}


def test_dropout_is_on_only_where_it_is_switched_on():
    policy = toy_policy(0, rank=2, dropout=0.5)
    call = lambda: policy.role("train")(X, T, None)  # noqa: E731
    assert torch.equal(call(), call())
    policy.adapter.train(True)
    assert not torch.equal(call(), call())
    policy.adapter.train(False)
    assert torch.equal(call(), call())


def test_the_seed_decides_the_fresh_adapter_and_leaves_the_global_generator_alone():
    networks = [base() for _ in range(3)]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    adapters = [Adapter(AdapterConfig(), n, ["to_q"], seed=s) for n, s in zip(networks, (0, 0, 1), strict=True)]
    assert torch.equal(torch.rand(1), expected)
    a, b, c = (next(iter(adapter.state_dict().values())) for adapter in adapters)
    assert torch.equal(a, b) and not torch.equal(a, c)
