"""The learning rate as a function of the update, and the optimiser that is asked for."""

import pytest
import torch

from align.errors import UserError
from align.training import optim
from align.training.optim import OptimConfig, learning_rate


def rates(num_updates: int = 10, **config) -> list[float]:
    return [learning_rate(OptimConfig(lr=1.0, **config), i, num_updates) for i in range(num_updates)]


def test_schedules():
    assert rates() == [1.0] * 10
    assert rates(num_warmup=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(schedule="linear") == pytest.approx([1 - i / 10 for i in range(10)])
    cosine = rates(schedule="cosine", num_warmup=2)
    assert cosine[:3] == [0.5, 1.0, 1.0]
    assert cosine[6] == pytest.approx(0.5)  # half of the way from update 2 to update 10
    assert all(r > 0 for r in cosine) and cosine[9] < 0.05


def test_warm_up_as_long_as_the_run_is_possible():
    assert rates(num_updates=4, num_warmup=4, schedule="linear") == [0.25, 0.5, 0.75, 1.0]


def test_adamw_follows_its_published_first_step():
    """AdamW's first step: w <- w (1 - lr wd) - lr g / (|g| + eps)."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimiser = optim.build(OptimConfig(lr=0.1, weight_decay=0.5), [weight])
    weight.grad = torch.tensor([0.3, -4.0])
    optimiser.step()
    torch.testing.assert_close(weight.data, torch.tensor([1.0, -2.0]) * 0.95 - 0.1 * torch.tensor([1.0, -1.0]))


def test_the_8_bit_optimiser_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r'optim.algorithm=adamw8bit: .*pip install "diffalign\[bnb\]"'):
        optim.build(OptimConfig(algorithm="adamw8bit"), [torch.nn.Parameter(torch.zeros(1))])


def test_a_warm_up_that_is_longer_than_the_run_is_said():
    assert optim.note(OptimConfig(num_warmup=10), 100) is None and optim.note(OptimConfig(), 1) is None
    assert "the rate gets no further than 6% of optim.lr" in str(optim.note(OptimConfig(num_warmup=500), 30))
