"""Rewards within a memory budget: pieces and placement change neither scores nor gradients."""

import pytest
import torch
from reward_toys import PROMPTS, smooth, to_tensor
from torch import Tensor, nn

from rewards import Composite, Reward, RewardError
from rewards._config import RewardConfig


class Settings(RewardConfig):
    pass


class Counted(Reward):
    """A small network that notes the batches it was given and where its weights were."""

    def __init__(self, **settings):
        super().__init__(Settings(**settings))
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 4, 3), nn.GELU())
        self.seen: list[int] = []

    def forward(self, images: Tensor, prompts) -> Tensor:
        assert len(images) == len(prompts)
        self.seen.append(len(images))
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts], device=images.device)
        return self.network(images).square().mean((1, 2, 3)) * lengths


def images(batch: int = 5) -> Tensor:
    return torch.rand(batch, 3, 24, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()


TEXTS = ["a", "bb", "ccc", "dddd", "eeeee"]


def scores_and_gradient(reward: Reward) -> tuple[Tensor, Tensor]:
    pixels = images()
    scores = Composite({"it": reward})(pixels, TEXTS)["it"]
    (gradient,) = torch.autograd.grad((scores * torch.arange(1.0, 6)).sum(), pixels)
    return scores, gradient


def test_a_budget_cuts_the_batch_and_changes_nothing():
    plain, small, ample = Counted(), Counted(memory_gib=1e-4), Counted(memory_gib=1.0)
    wanted = scores_and_gradient(plain)
    for reward in (small, ample):
        for found, expected in zip(scores_and_gradient(reward), wanted, strict=True):
            torch.testing.assert_close(found, expected)
    assert plain.seen == [5]
    assert small.seen[1:] != [5] and sum(small.seen[1:]) == 5, "the first call measures one image"
    assert ample.seen == [1, 5]


def test_what_one_image_needs_is_measured_once_a_size():
    reward = Counted(memory_gib=1e-4)
    scores_and_gradient(reward)
    first = len(reward.seen)
    scores_and_gradient(reward)
    assert len(reward.seen) == 2 * first - 1
    (bytes_of_one,) = reward.__dict__["_bytes_of_one"].values()
    exact = 4 * (3 * 24 * 24 + 2 * 8 * 22 * 22 + 2 * 4 * 20 * 20)  # inputs of conv, GELU, conv, GELU, square
    assert exact <= bytes_of_one <= 1.1 * exact


def test_pieces_hold_no_graph_while_they_wait():
    """The forward pass takes the gradient at once: saved for backward is one tensor as large as the images."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.shape) or x, lambda x: x):
        Counted(memory_gib=1.0)(images(), TEXTS)
    assert saved[-1] == (5, 3, 24, 24)
    outside = [shape for shape in saved if shape == (5, 3, 24, 24)]
    assert outside


def test_offload_scores_the_same_and_moves_the_weights_back():
    reward = Counted(offload=True)
    places = []
    move = reward.to
    reward.to = lambda device: places.append(str(device)) or move(device)
    for found, expected in zip(scores_and_gradient(reward), scores_and_gradient(Counted()), strict=True):
        torch.testing.assert_close(found, expected)
    assert places == ["cpu", "cpu"], "to the images' device for the call, to the CPU after it"


def test_an_offloaded_reward_does_not_come_with_the_others():
    """Before it is asked for the first time it takes no memory of the device."""
    both = Composite({"on": Counted(), "off": Counted(offload=True)})
    assert both.to("meta") is both
    devices = {name: {p.device.type for p in reward.parameters()} for name, reward in both.rewards.items()}
    assert devices == {"on": {"meta"}, "off": {"cpu"}}


def test_offload_moves_the_weights_back_after_an_error():
    reward = Counted(offload=True)
    places = []
    reward.to = lambda device: places.append(str(device))
    reward.forward = lambda images, prompts: 1 / 0
    with pytest.raises(ZeroDivisionError):
        reward(images(), TEXTS)
    assert len(places) == 2


def test_without_a_gradient_there_is_none():
    reward = Counted(memory_gib=1e-4)
    with torch.no_grad():
        scores = reward(images(), TEXTS)
    assert not scores.requires_grad and scores.shape == (5,)


def test_a_detached_score_is_named_although_it_is_computed_in_pieces():
    reward = Counted(memory_gib=1e-4)
    reward.forward = lambda images, prompts: images.detach().mean((1, 2, 3))
    with pytest.raises(RewardError, match="is silently detached"):
        Composite({"it": reward})(images(), TEXTS)


def test_a_real_reward_in_pieces(tiny_clip):
    from rewards.clip import Clip, ClipConfig

    pixels = to_tensor(*(smooth(40, 40).rotate(90 * k) for k in range(3))).requires_grad_()
    found = []
    for settings in ({}, {"memory_gib": 1e-4}, {"offload": True}):
        scores = Clip(ClipConfig(model=str(tiny_clip), **settings))(pixels, PROMPTS)
        found.append((scores.detach(), torch.autograd.grad(scores.sum(), pixels)[0]))
    for scores, gradient in found[1:]:
        torch.testing.assert_close(scores, found[0][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-4, atol=1e-6)
