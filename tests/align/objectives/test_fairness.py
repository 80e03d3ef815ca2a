"""Fairness: targets of whole updates whatever the cut, a loss on those that are certain, the base's images of the same
noise as what is held to, and adjusted DFT's gradient."""

import pytest
import torch
from bundle_toys import SEED, Bundle, Network, at, steps, through_input

from align.data.prompts import PromptBatch
from align.errors import UserError
from align.objectives._base import Parts
from align.objectives.fairness import Fairness, FairnessConfig
from align.sampling import SamplingConfig
from align.training.trainer import TrainConfig
from rewards import Composite, Reward, RewardConfig
from rewards.brightness import Brightness, BrightnessConfig

BATCH = PromptBatch(("a", "a", "b", "a", "b", "a", "a", "b"), tuple(range(16, 24)), 2)


class Colours(Reward):
    """The mean of one channel, which the prompt's first letter names."""

    Config = RewardConfig

    def forward(self, images, prompts):
        chosen = torch.tensor(["rgb".index(prompt[0]) for prompt in prompts])
        return images.flatten(2).mean(2)[torch.arange(len(images)), chosen]


def made(reward=None, attributes=("red", "green"), **config):
    attributes = attributes if isinstance(attributes, dict) else list(attributes)
    block = SamplingConfig(num_steps=8, step_rule="euler", guidance_scale=1.0, memory="stored")
    rewards = Composite({"colours": reward or Colours(RewardConfig(), name="colours")})
    config = {"sharpness": 9.0, "num_draws": 30, "attributes": attributes} | config
    return Fairness(FairnessConfig(**config), Parts(Bundle(), block, rewards, SEED))


def same(rows):
    return rows


class Roles(Network):
    """The toy network, of which the reference is another one."""

    def role(self, name):
        if name == "train":
            return self
        other = Network()
        other.theta = torch.full_like(self.theta, 0.2)
        return other


@pytest.mark.parametrize("attributes", [("red", "green"), ("red", "green", "blue")])
def test_targets_and_losses_do_not_depend_on_the_cut_or_the_processes(attributes):
    objective, network = made(attributes=attributes, uncertainty=0.4), Roles()
    whole = objective.before_update(network, [BATCH], same)
    assert whole == objective.before_update(network, [BATCH[:3], BATCH[3:]], same)
    assert set(whole) == set(BATCH.indices)
    sent: list[torch.Tensor] = []
    objective.before_update(network, [BATCH[:3]], lambda rows: sent.append(rows) or rows)
    first = iter(sent)
    assert whole == objective.before_update(network, [BATCH[3:]], lambda rows: torch.cat([next(first), rows]))
    everything: list[torch.Tensor] = []
    objective.before_update(network, [BATCH], lambda rows: everything.append(rows) or rows)
    rest = iter(everything)
    assert whole == objective.before_update(network, [], lambda rows: torch.cat([next(rest), rows])), "no rows here"
    losses = objective(network, BATCH, whole).per_sample
    parts = torch.cat([objective(network, part, whole).per_sample for part in (BATCH[:3], BATCH[3:])])
    torch.testing.assert_close(parts, losses, rtol=1e-9, atol=1e-12)


def test_a_prompts_images_are_ranked_among_themselves():
    objective, network = made(attributes={"red": 0.5, "green": 0.5}, uncertainty=0.49), Roles()
    found = objective.before_update(network, [BATCH], same)
    for prompt in ("a", "b"):
        labels = [found[i][0] for i, p in zip(BATCH.indices, BATCH.prompts, strict=True) if p == prompt]
        assert abs(sum(labels) / len(labels) - 0.5) <= 0.5 / len(labels) + 1e-9


def test_only_certain_images_are_trained_to_their_class():
    objective, network = made(preserve=0.0), Roles()
    told = {index: (index % 2, index < 20, False) for index in BATCH.indices}
    loss = objective(network, BATCH, told)
    logits = objective.logits(objective.model.seen[-1], BATCH.prompts).detach()
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([i % 2 for i in BATCH.indices]), reduction="none")
    torch.testing.assert_close(loss.per_sample[:4].detach(), expected[:4].to(loss.per_sample), rtol=1e-9, atol=0)
    assert loss.per_sample[4:].tolist() == [0] * 4 and loss.metrics["certain"].tolist() == [1] * 4 + [0] * 4


def test_images_are_held_to_the_bases_of_the_same_noise_and_less_where_they_have_to_change():
    objective, network = made(preserve=2.0, uncertainty=0.0), Roles()
    told = {index: (0, False, index % 2 == 1) for index in BATCH.indices}
    loss = objective(network, BATCH, told)
    pixels, base = objective.model.seen[-2:]
    apart = 1 - torch.nn.functional.cosine_similarity(pixels.flatten(1), base.flatten(1))
    weight = torch.tensor([2.0 if index % 2 == 0 else 0.4 for index in BATCH.indices], dtype=torch.float64)
    torch.testing.assert_close(loss.per_sample, weight * apart, rtol=1e-6, atol=1e-9)
    assert apart.min() > 1e-4 and not base.requires_grad
    alone = Network()  # the base itself: nothing to hold
    assert objective(alone, BATCH, told).per_sample.abs().max() < 1e-6


def test_the_gradient_is_adjusted_dfts():
    network = Roles()
    loss = made(preserve=0.0)(network, at(3))
    assert steps(network, loss.per_sample) == [True] * 8 and not any(through_input(network, loss.per_sample))


def test_training_on_the_targets_brings_the_shares_there():
    """24 images, most of them red, moved by descent on their own logits, to three quarters green."""
    objective = made(attributes={"red": 0.25, "green": 0.75}, preserve=0.0, uncertainty=0.49)
    start = torch.randn(24, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = torch.cat([start + 2, -start], 1).requires_grad_()
    keys = torch.stack([torch.arange(24), torch.zeros(24, dtype=torch.long), torch.zeros(24, dtype=torch.long)], 1)
    for _ in range(60):
        told = objective.targets(logits.detach().softmax(1), keys)
        label, certain = (torch.tensor([told[i][k] for i in range(24)]) for k in (0, 1))
        loss = (certain * torch.nn.functional.cross_entropy(logits, label.long(), reduction="none")).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - gradient).detach().requires_grad_()
    assert int((start + 2 > -start).sum()) == 18, "three quarters are red to begin with"
    assert int((logits.argmax(1) == 1).sum()) == 18


def test_the_images_own_prompt_may_stand_in_an_attribute():
    seen = []

    class Listens(Colours):
        def forward(self, images, prompts):
            seen.append(list(prompts))
            return super().forward(images, ["r" if "old" in prompt else "g" for prompt in prompts])

    objective = made(Listens(RewardConfig(), name="listens"), attributes=("{}, old", "a young person"))
    objective.logits(torch.rand(2, 3, 4, 4), ["a king", "a cook"])
    assert seen == [["a king, old", "a cook, old"], ["a young person"] * 2]


def test_a_reward_that_does_not_read_the_prompt_is_refused():
    with pytest.raises(UserError, match=r"objective\.attributes.*reads the prompt"):
        made(Brightness(BrightnessConfig())).before_update(Roles(), [BATCH], same)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [({"a": 0.5, "b": 0.4}, r"sum to 0\.9"), (["a", "a"], "stands there twice"), (["a"], "attributes")],
)
def test_attributes_that_are_no_distribution_are_refused(attributes, said):
    with pytest.raises(ValueError, match=said):
        FairnessConfig(attributes=attributes)


def test_shares_and_small_batches():
    assert FairnessConfig(attributes=["a", "b", "c"]).shares == [pytest.approx(1 / 3)] * 3
    config = FairnessConfig(attributes={"a": 0.2, "b": 0.8})
    ((key, text),) = config.conflicts({"train": TrainConfig(batch_size=3)})
    assert key == "train.batch_size" and "Set it to 4" in text
    assert not list(config.conflicts({"train": TrainConfig(batch_size=4)}))
