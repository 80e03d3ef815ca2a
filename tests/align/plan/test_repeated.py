"""What is remembered of an operation is what it would say if it was asked again."""

import pytest
import torch

from align.config import load_recipe
from align.plan import Peak, rehearse
from align.plan.repeated import Repeated

aten = torch.ops.aten


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


NORMED = (meta(2, 8, 4), meta(2, 8, 4), meta(2, 4), meta(2, 4), None, 2, 8, 4, 4, [True, False, False])
"""A gradient, what it is of, mean, scale, no weights, sizes, groups: what gradients are asked for."""


@pytest.mark.parametrize("name", ["draft/shapes", "unlearn/shapes", "grpo/shapes"])
def test_an_update_costs_the_same_asked_once_and_every_time(name, tmp_path, monkeypatch):
    recipe = load_recipe(name, {"output": str(tmp_path / "run"), "train.micro_batch_size": 2})
    once = rehearse(recipe)
    monkeypatch.setattr(Repeated, "_key", lambda *asked: None)
    assert rehearse(recipe) == once


@pytest.mark.parametrize(
    ("func", "args", "kwargs"),
    [
        (aten.mm.default, (meta(2, 3), meta(3, 4)), {}),
        (aten.add.Tensor, (meta(2, 3), 1), {"alpha": 2}),
        (aten.mul.Tensor, (meta(4, 1, dtype=torch.bfloat16), meta(1, 5)), {}),
        (aten.native_layer_norm.default, (meta(2, 8), [8], meta(8), meta(8), 1e-5), {}),
        (aten.native_group_norm_backward.default, NORMED, {}),
        (aten.clone.default, (meta(3, 4).t(),), {}),
        (aten.sum.dim_IntList, (meta(3, 4), [0]), {"dtype": torch.float64}),
    ],
)
def test_it_makes_what_the_operation_makes(func, args, kwargs):
    asked = Repeated()
    first, again = asked(func, args, kwargs), asked(func, args, kwargs)
    assert asked.seen and None not in asked.seen.values() and first[1] == again[1]
    one, other = ((out if isinstance(out, tuple) else (out,)) for out in (first[0], again[0]))
    for made, anew in zip(one, other, strict=True):
        assert (made is None) == (anew is None)
        if made is not None:
            assert (made.shape, made.stride(), made.dtype) == (anew.shape, anew.stride(), anew.dtype)
            assert made.untyped_storage().nbytes() == anew.untyped_storage().nbytes()
            assert made.untyped_storage()._cdata != anew.untyped_storage()._cdata


def test_what_makes_no_storage_of_its_own_is_asked_every_time():
    asked, x = Repeated(), meta(2, 6)
    for _ in range(2):
        view, _ = asked(aten.view.default, (x, [3, 4]), {})
        assert view.untyped_storage()._cdata == x.untyped_storage()._cdata
        assert asked(aten.add_.Tensor, (x, 1), {})[0] is x
    assert not asked.seen


def test_real_numbers_are_worked_out_every_time():
    asked = Repeated()
    for value in (1.0, 2.0):
        assert asked(aten.add.Tensor, (torch.full((2,), value), 1), {})[0].tolist() == [value + 1] * 2


def test_settings_that_are_equal_and_not_the_same_are_told_apart():
    asked, whole = Repeated(), meta(3, dtype=torch.int64)
    assert asked(aten.add.Tensor, (whole, 1), {})[0].dtype is torch.int64
    assert asked(aten.add.Tensor, (whole, 1.0), {})[0].dtype is torch.float32


def test_what_is_remembered_is_counted_each_time():
    x = meta(10)
    with Peak([x]) as meter:
        alive = [x + 1 for _ in range(3)]
        assert meter.current == meter.peak == 3 * 40
        del alive
        assert meter.current == 0
        for _ in range(2):
            assert (meta(4, 5) @ meta(5, 6)).shape == (4, 6)
    assert meter.flops == 2 * (2 * 4 * 5 * 6)
