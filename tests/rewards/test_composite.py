"""The composite, and the one-line errors of rewards that break their contract."""

import pytest
import torch
from torch import nn

from rewards import Composite, Reward, RewardError
from rewards._combine import CombineConfig, Normaliser, coefficients
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


def test_one_backward_through_the_images_carries_the_gradient_of_the_total():
    """What `score` puts in the place of the rewards' graphs has their value and their gradient."""
    source = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    composite = composite_of(
        product=Lambda(lambda x: x.square().mean((1, 2, 3)), weight=0.5), red=Lambda(red, weight=-2)
    )
    images = source.sigmoid()
    terms, total, metrics = composite.score(images, ["", ""])
    plain = composite.combine(composite(images, ["", ""]))
    torch.testing.assert_close(total, plain, rtol=1e-12, atol=0)
    found, wanted = (torch.autograd.grad(x.sum(), source, retain_graph=True)[0] for x in (total, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-15)
    assert not any(value.requires_grad for value in (*terms.values(), *metrics.values()))
    assert metrics.keys() == {"pixel_grad/product", "pixel_grad/red", "cosine/product/red"}
    torch.testing.assert_close(metrics["pixel_grad/red"], torch.full((2,), 2 / 4))  # 16 pixels of -2/16


def test_without_a_gradient_score_is_the_raw_terms_and_the_total():
    composite = composite_of(a=Lambda(red, weight=3.0))
    with torch.no_grad():
        terms, total, metrics = composite.score(pixels(), ["", ""])
    torch.testing.assert_close(total, 3 * terms["a"])
    assert not metrics and not total.requires_grad


def composite_of(config: CombineConfig | None = None, **rewards: Reward) -> Composite:
    return Composite(rewards, config)


def linear(*directions: list[float], weights: list[float] | None = None, how: str = "sum") -> Composite:
    """Rewards <d_i, (pixel 0 of the red, green, blue channel)>, so that h_i = w_i d_i."""
    rows, sizes = torch.tensor(directions), weights or [1.0] * len(directions)
    parts = {
        f"r{i}": Lambda(lambda x, i=i: (x[:, :, 0, 0] * rows[i]).sum(1), weight=weight)
        for i, weight in enumerate(sizes)
    }
    return Composite(parts, CombineConfig(gradients=how))  # type: ignore[arg-type]


def combined(composite: Composite) -> torch.Tensor:
    """The combined gradient at that pixel, (3,), float64."""
    images = torch.rand(1, 3, 2, 2, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(composite.score(images, [""]).total.sum(), images)
    return gradient[0, :, 0, 0]


def test_pcgrad_of_two_rewards_is_the_papers_and_opposes_neither():
    """h_1 = (1, 0), h_2 = (-1, 1): h_1 loses its part along h_2, <h_1, h_2>/|h_2|^2 = -1/2, and h_2 all along h_1."""
    found = combined(linear([1.0, 0, 0], [-1.0, 1.0, 0], how="pcgrad"))
    torch.testing.assert_close(found, torch.tensor([0.5 + 0, 0.5 + 1, 0], dtype=torch.float64))
    agreeing = linear([1.0, 0, 0], [1.0, 1.0, 0], how="pcgrad")
    torch.testing.assert_close(combined(agreeing), torch.tensor([2.0, 1, 0], dtype=torch.float64))
    opposed = linear([1.0, 2, 0], [-1.0, -2, 0], how="pcgrad")
    torch.testing.assert_close(combined(opposed), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("number", [2, 3, 5])
def test_pcgrad_opposes_no_reward_also_where_the_papers_sequence_alone_would(number):
    generator = torch.Generator().manual_seed(number)
    gradients = torch.randn(2000, number, 6, generator=generator, dtype=torch.float64)
    products = gradients @ gradients.transpose(1, 2)
    along = (coefficients("pcgrad", products, [1.0] * number)[:, None] * products).sum(-1)
    size = products.diagonal(dim1=1, dim2=2)
    assert float((along / size).min()) > -1e-9
    assert float(((coefficients("sum", products, [1.0] * number)[:, None] * products).sum(-1) / size).min()) < -0.1
    if number > 2:  # the projection is needed: the sequence of the paper leaves conflicts
        from rewards import _combine

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_combine, "_project", lambda start, products: start)
            bare = coefficients("pcgrad", products, [1.0] * number)
        assert float(((bare[:, None] * products).sum(-1) / size).min()) < -1e-2


def test_normalised_gradients_have_their_weights_shares_whatever_their_scales():
    big = linear([100.0, 0, 0], [0.0, 0.1, 0], weights=[1.0, 3.0], how="normalised")
    found = combined(big)
    total = 100 + 0.3  # |h_1| + |h_2|
    torch.testing.assert_close(found, torch.tensor([total / 4, 3 * total / 4, 0], dtype=torch.float64))
    flipped = combined(linear([1.0, 0, 0], [0.0, 1.0, 0], weights=[1.0, -1.0], how="normalised"))
    torch.testing.assert_close(flipped, torch.tensor([1.0, -1.0, 0], dtype=torch.float64))


def test_an_images_gradient_does_not_depend_on_the_batch_it_is_in():
    images = torch.rand(3, 3, 2, 2, dtype=torch.float64)
    parts = {"a": Lambda(lambda x: x.square().sum((1, 2, 3))), "b": Lambda(lambda x: -x.pow(3).sum((1, 2, 3)))}
    for how in ("sum", "normalised", "pcgrad"):
        composite = Composite(parts, CombineConfig(gradients=how))
        whole, single = images.clone().requires_grad_(), images[1:2].clone().requires_grad_()
        composite.score(whole, [""] * 3).total.sum().backward()
        composite.score(single, [""]).total.sum().backward()
        assert whole.grad is not None and single.grad is not None
        torch.testing.assert_close(whole.grad[1:2], single.grad)
        assert float(single.grad.abs().max()) > 0


def test_half_precision_images_get_their_gradient_back_in_half_precision():
    images = pixels(dtype=torch.bfloat16)
    images = images.detach().requires_grad_()
    terms, total, _ = composite_of(a=Lambda(red), b=Brightness(BrightnessConfig())).score(images, ["", ""])
    (gradient,) = torch.autograd.grad(total.sum(), images)
    assert gradient.dtype == torch.bfloat16 and float(gradient[:, 0].float().mean()) == pytest.approx(
        1.299 / 16, rel=1e-2
    )
    assert terms["a"].dtype == torch.float32


def test_scores_are_standardised_by_what_was_observed_and_weights_then_compare():
    scores = torch.tensor([[1.0, 100.0], [3.0, 500.0]])
    normaliser = Normaliser(CombineConfig(normalise="running", decay=0.75), ["a", "b"])
    assert not normaliser.ready
    normaliser.observe(scores)
    assert normaliser.ready and normaliser.scale("a") == (2.0, 1.0) and normaliser.scale("b") == (300.0, 200.0)
    normaliser.observe(scores + torch.tensor([[4.0, 0.0]]))
    # E r = 0.75 2 + 0.25 6 = 3;  E r^2 = 0.75 5 + 0.25 37 = 13;  std = 2
    assert normaliser.scale("a") == pytest.approx((3.0, 2.0)) and normaliser.scale("b") == pytest.approx((300.0, 200.0))
    again = Normaliser(normaliser.config, ["a", "b"])
    again.load_state_dict(normaliser.state_dict())
    assert again.scale("a") == normaliser.scale("a")


def test_fixed_statistics_are_given_or_those_of_the_first_scores_and_stay():
    config = CombineConfig(normalise="fixed", statistics={"a": (0.25, 0.05)})
    composite = composite_of(config, a=Lambda(red, weight=2.0), b=Lambda(red))
    assert not composite.normaliser.ready
    for scores in (torch.tensor([[9.0, 1.0], [9.0, 3.0]]), torch.tensor([[0.0, 50.0], [1.0, 70.0]])):
        composite.normaliser.observe(scores)
    total = composite.combine({"a": torch.tensor([0.35]), "b": torch.tensor([4.0])})
    torch.testing.assert_close(total, torch.tensor([2 * 2.0 + 2.0]))
    images = pixels()
    (gradient,) = torch.autograd.grad(composite.score(images, ["", ""]).total.sum(), images)
    torch.testing.assert_close(gradient[:, 0], torch.full((2, 4, 4), (2 / 0.05 + 1) / 16))


def test_equal_scores_are_centred_and_not_blown_up():
    normaliser = Normaliser(CombineConfig(normalise="running"), ["a"])
    normaliser.observe(torch.full((4, 1), 0.3))
    mean, std = normaliser.scale("a")
    assert (mean, std) == (pytest.approx(0.3), 1.0)


def test_settings_of_the_combination_that_cannot_work():
    recipe = {"rewards": {"a": None}}
    ((key, text),) = CombineConfig(statistics={"a": (0, 1)}).conflicts(recipe)
    assert key == ".statistics" and "normalise=fixed" in text
    found = dict(CombineConfig(normalise="fixed", statistics={"a": (0, 0), "b": (0, 1)}).conflicts(recipe))
    assert "above 0" in found[".statistics.a"] and "is no reward here: a" in found[".statistics.b"]


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
    with pytest.raises(RewardError, match="2 images came with 1 prompt:"):
        composite(pixels(), ["a"])
    with pytest.raises(RewardError, match="at least one"):
        Composite({})
