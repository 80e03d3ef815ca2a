"""The composite, and the one-line errors of rewards that break their contract."""

import pytest
import torch
from torch import nn

from rewards import Composite, Reward, RewardError
from rewards._composite import WeightedSum
from rewards._config import RewardConfig
from rewards.brightness import Brightness, BrightnessConfig


class Settings(RewardConfig):
    gradient: bool = True

    def has_gradient(self) -> bool:
        return self.gradient


class Lambda(Reward):
    """Whatever `function` says."""

    def __init__(self, function, **settings):
        super().__init__(Settings(**settings), licence="none")
        self.function = function

    def forward(self, images, prompts):
        return self.function(images)


def red(images):
    return images[:, 0].mean((1, 2))


def pixels(batch: int = 2, **kwargs) -> torch.Tensor:
    return torch.rand(batch, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(**kwargs).requires_grad_()


def test_the_total_is_linear_in_the_weights_value_and_gradient():
    images = pixels()
    parts = {"a": Lambda(red, weight=0.25), "b": Brightness(BrightnessConfig(weight=-2.0))}
    composite = Composite(parts)
    terms = composite(images, ["", ""])
    total = composite.combine(terms)
    expected = 0.25 * terms["a"] - 2.0 * terms["b"]
    torch.testing.assert_close(total, expected)
    gradient, wanted = (torch.autograd.grad(x.sum(), images, retain_graph=True)[0] for x in (total, expected))
    torch.testing.assert_close(gradient, wanted)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1) / 16
    closed_form = -2.0 * luma + 0.25 * torch.tensor([1.0, 0, 0]).view(3, 1, 1) / 16
    torch.testing.assert_close(gradient, closed_form.expand_as(gradient))


def test_a_strategy_of_ones_own():
    composite = Composite({"a": Lambda(red), "b": Lambda(red)}, combine=lambda terms: terms["a"] * terms["b"])
    terms = composite(pixels(), ["", ""])
    torch.testing.assert_close(composite.combine(terms), terms["a"] ** 2)
    assert WeightedSum({"a": 3.0})({"a": torch.ones(2)}).tolist() == [3, 3]


def test_autocast_does_not_reach_a_reward_and_half_precision_becomes_float32():
    seen = []

    def spy(images):
        seen.append((images.dtype, (images[0, 0] @ images[0, 0]).dtype))
        return red(images)

    with torch.autocast("cpu", torch.bfloat16):
        terms = Composite({"it": Lambda(spy)})(pixels(dtype=torch.bfloat16), ["", ""])
    assert seen == [(torch.float32, torch.float32)]
    assert terms["it"].requires_grad


def test_a_term_without_gradient_is_computed_without_a_graph():
    composite = Composite({"a": Lambda(red, gradient=False)})
    assert not composite.differentiable
    assert not composite(pixels(), ["", ""])["a"].requires_grad


def test_networks_are_frozen_by_being_assigned_and_stay_in_eval_mode():
    reward = Lambda(nn.Sequential(nn.Flatten(), nn.Linear(48, 1), nn.Dropout(0.5), nn.Flatten(0)))
    outer = nn.ModuleList([reward]).train()
    assert outer.training and not any(module.training for module in reward.modules())
    assert [p.requires_grad for p in reward.parameters()] == [False, False]
    images = pixels()
    torch.testing.assert_close(reward(images, ["", ""]), reward(images, ["", ""]))


BROKEN = {
    "returned list": lambda images: [1.0, 2.0],
    "returned a scalar for 2 images": lambda images: images.mean(),
    r"returned shape \(3,\) for 2 images": lambda images: torch.ones(3),
    r"returned shape \(2, 1\)": lambda images: red(images)[:, None],
    "returned torch.int64": lambda images: torch.ones(2, dtype=torch.int64),
    r"returned nan for image 1 of 2 \(prompt 'b'\)": lambda images: red(images) / torch.tensor([1.0, 0.0]) * 0,
    "returned scores on meta for images on cpu": lambda images: torch.ones(2, device="meta"),
    "is silently detached": lambda images: red(images.detach()),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_reward_is_named_in_one_line(message):
    def function(images):
        return BROKEN[message](images)

    with pytest.raises(RewardError, match=message) as caught:
        Composite({"mine": Lambda(function)})(pixels(), ["a", "b"])
    assert "reward mine" in str(caught.value) and "\n" not in str(caught.value)


def test_detached_scores_are_fine_where_nobody_asks_for_a_gradient():
    composite = Composite({"mine": Lambda(lambda images: red(images.detach()))})
    with torch.no_grad():
        composite(pixels(), ["a", "b"])
    composite(pixels().detach(), ["a", "b"])


def test_wrong_inputs():
    composite = Composite({"mine": Lambda(red)})
    with pytest.raises(RewardError, match=r"rewards take \(B, 3, H, W\)"):
        composite(torch.zeros(2, 4, 4, 3), ["a", "b"])
    with pytest.raises(RewardError, match="2 images came with 1 prompts"):
        composite(pixels(), ["a"])
    with pytest.raises(RewardError, match="at least one"):
        Composite({})
