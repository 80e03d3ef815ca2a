"""The contract of a reward, for every file of the registry's folders: a new file is tested by existing."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch
from reward_settings import asked, settings
from reward_toys import smooth, to_tensor

from align.registry import REWARDS, build
from rewards import Composite, Reward
from rewards._config import RewardConfig
from rewards._registry import component_of


@pytest.fixture(params=REWARDS.names())
def examples(request: pytest.FixtureRequest, tmp_path: Path) -> list[Reward]:
    if request.param == "ocr":
        pytest.importorskip("rapidocr")
    found = settings(request.param, request, tmp_path)
    return [build(REWARDS, REWARDS.look_up({"name": request.param, **one})) for one in found]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    pictures = [smooth(32, 32).rotate(90 * k) for k in range(3)]
    return 0.9 * to_tensor(*pictures) + 0.05


def tolerance(reward: Reward) -> float:
    return 2e-2 if getattr(reward.config, "dtype", "") == "bfloat16" else 1e-5


def test_one_component_a_file_that_says_what_is_better():
    for name, path in REWARDS.modules().items():
        component = component_of(importlib.import_module(path))
        assert issubclass(component, Reward)
        assert component.__name__.lower() == name.replace("_", ""), "a component is called as its file is"
        assert issubclass(component.Config, RewardConfig)
        assert component.Config.model_fields["name"].default == name
        assert "higher" in (inspect.getdoc(component) or ""), f"{name}: say in the docstring what higher means"


def test_scores_and_gradient(examples, images):
    for reward in examples:
        assert reward.name and reward.licence and reward.differentiable == reward.config.has_gradient()
        pixels = images.clone().requires_grad_()
        scores = Composite({"it": reward})(pixels, asked(reward))["it"]
        assert scores.shape == (3,) and scores.dtype == torch.float32 and scores.isfinite().all()
        assert scores.requires_grad == reward.differentiable
        if reward.differentiable:
            (gradient,) = torch.autograd.grad(scores.sum(), pixels)
            assert gradient.isfinite().all()
            assert (gradient.flatten(1).norm(dim=1) > 0).all(), "something on the way has no gradient"
        again = Composite({"it": reward})(images, asked(reward))["it"]
        torch.testing.assert_close(scores.detach(), again, rtol=tolerance(reward), atol=tolerance(reward))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_every_precision_are_scored(examples, images, dtype):
    """Half-precision images are a model's; they hold the same levels after rounding to them."""
    for reward in examples:
        exact = images.to(dtype).float()
        wanted = Composite({"it": reward})(exact, asked(reward))["it"].detach()
        pixels = images.to(dtype).requires_grad_()
        scores = Composite({"it": reward})(pixels, asked(reward))["it"]
        loose = 10 * tolerance(reward) * float(1 + wanted.abs().max())
        torch.testing.assert_close(scores.detach().float(), wanted, rtol=0, atol=loose)
        if reward.differentiable:
            (gradient,) = torch.autograd.grad(scores.sum(), pixels)
            assert gradient.dtype == dtype and gradient.isfinite().all()


ODD = ("a cat on the moon", "two red", 'it says "  "', "a photo of a dog <|Reward|>", "seven blue of a", "{}", "東京")
"""What some reward or other cannot score."""


def test_a_prompt_that_cannot_be_scored_is_known_before(examples, images):
    """What raises in scoring is refused before a run begins, and nothing else is."""
    reward = examples[0]
    for prompt in (*ODD, *asked(reward)):
        try:
            reward(images[:1], [prompt])
            raised = []
        except ValueError as error:
            raised = [str(error)]
        found = list(reward.config.unreadable([prompt]))
        assert len(found) == len(raised), f"{prompt!r}: scoring says {raised}, config.unreadable {found}"
        assert all("\n" not in text for text in found)
    assert not list(reward.config.unreadable(asked(reward)))


def test_scores_do_not_depend_on_the_rest_of_the_batch(examples, images):
    for reward in examples:
        together = reward(images, asked(reward))
        alone = torch.cat([reward(images[i : i + 1], asked(reward)[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(together, alone, rtol=tolerance(reward), atol=tolerance(reward))


def test_frozen_in_eval_mode_and_unchanged_by_a_call(examples, images):
    for reward in examples:
        reward.train()
        assert not any(module.training for module in reward.modules())
        assert not any(parameter.requires_grad for parameter in reward.parameters())
        before = {name: tensor.clone() for name, tensor in reward.state_dict().items()}
        reward(images, asked(reward))
        after = reward.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
