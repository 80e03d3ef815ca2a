"""A user's function that raises or hangs: one line with its file and line; memory that runs out is nobody's mistake."""

import time

import pytest
import torch

from rewards import Composite, RewardError
from rewards.python import Python, PythonConfig

IMAGES, PROMPTS = torch.rand(2, 3, 4, 4), ["a", "b"]
CPU = torch.device("cpu")


def divides(images, prompts):
    return inner(images) / 0


def inner(images):
    raise ZeroDivisionError("division by zero")


def sleeps(images, prompts):
    time.sleep(30)


def hungry(images, prompts):
    raise torch.OutOfMemoryError("CUDA out of memory")


def bright(images, prompts):
    return images.mean((1, 2, 3))


def reward(name, **settings):
    return Python(PythonConfig(function=f"{__name__}:{name}", **settings))


@pytest.mark.parametrize("timeout", [None, 20.0])
def test_what_it_raises_is_told_with_its_place(timeout):
    line = inner.__code__.co_firstlineno + 1
    with pytest.raises(RewardError, match=rf"reward divides: .*test_python_faults.py, line {line}: ZeroDivisionError"):
        reward("divides", timeout=timeout)(IMAGES, PROMPTS)


def test_one_that_hangs_ends_at_its_timeout():
    begun = time.monotonic()
    with pytest.raises(RewardError, match=r"reward sleeps: TimeoutError: did not answer within 0.1 s. Raise"):
        reward("sleeps", timeout=0.1)(IMAGES, PROMPTS)
    assert time.monotonic() - begun < 20


def test_memory_that_runs_out_is_left_to_who_can_cut_the_batch():
    with pytest.raises(torch.OutOfMemoryError):
        reward("hungry")(IMAGES, PROMPTS)


@pytest.mark.parametrize("timeout", [None, 20.0])
def test_the_gradient_is_the_same_with_a_timeout(timeout):
    pixels = IMAGES.clone().requires_grad_()
    reward("bright", timeout=timeout)(pixels, PROMPTS).sum().backward()
    assert torch.equal(pixels.grad, torch.full_like(IMAGES, 1 / 48))
    with torch.no_grad():
        assert not reward("bright", timeout=timeout)(pixels, PROMPTS).requires_grad


def averages(images, prompts):
    return images.mean()


def detached(images, prompts):
    return images.detach().mean((1, 2, 3))


def normalises(images, prompts):
    means = images.mean((1, 2, 3))
    return (means - means.mean()) / means.std()


def by_numpy(images, prompts):
    return torch.from_numpy(images.numpy().mean((1, 2, 3)))


def of_images(images):
    return images.mean((1, 2, 3))


def of_512_pixels(images, prompts):
    return images.reshape(len(images), 3, 512, 512).mean((1, 2, 3))


def draws(images, prompts):
    return images.mean((1, 2, 3)) + torch.rand(len(images))


def stepped(images, prompts):
    return (images.mean((1, 2, 3)) * 10).round() / 10


BROKEN = {
    "stepped": r"mine: its gradient is 0 everywhere, since round\(\) is flat",
    "averages": "mine returned a scalar",
    "detached": "silently detached",
    "normalises": "mine gives an image .* beside another and .* alone: its score depends on the batch",
    "of_images": "of_images cannot be called with .images, prompts.: too many positional arguments",
}


@pytest.mark.parametrize(("name", "said"), BROKEN.items())
def test_a_broken_contract_is_seen_before_anything_is_loaded(name, said):
    with pytest.raises(RewardError, match=said):
        Composite({"mine": reward(name)}).try_out(["a"], CPU)


@pytest.mark.parametrize(
    ("name", "said"), [("divides", "ZeroDivisionError"), ("by_numpy", "numpy breaks the gradient")]
)
def test_what_fails_at_every_size_is_said_before_anything_is_loaded(name, said):
    with pytest.raises(RewardError, match=f"line .*: {said}"):
        Composite({"mine": reward(name)}).try_out(["a"], CPU)


def test_a_try_leaves_the_random_state_and_what_may_be_of_its_size_alone():
    Composite({"mine": reward("of_512_pixels")}).try_out(["a"], CPU)
    Composite({"mine": reward("stepped", differentiable=False)}).try_out(["a"], CPU)
    Composite({"mine": reward("bright"), "api": reward("detached", differentiable=False)}).try_out(["a", "b", "c"], CPU)
    state = torch.get_rng_state()
    reward("draws").try_out("mine", [], CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_numpy_is_answered_with_what_to_do_and_not_with_a_detour():
    with pytest.raises(RewardError, match=r"line .*: numpy breaks the gradient. Stay in torch, or set differ"):
        reward("by_numpy")(IMAGES.clone().requires_grad_(), PROMPTS)
    assert reward("by_numpy", differentiable=False)(IMAGES, PROMPTS).shape == (2,)


SEEN: list[int] = []


def over_a_network(images, prompts):
    SEEN.append(len(prompts))
    raise ConnectionError("nobody answers")


def looked_up(images, prompts):
    return images.mean((1, 2, 3)) + torch.tensor([{"a known one": 1.0}[prompt] for prompt in prompts])


def test_a_try_is_as_training_will_ask():
    """Numpy where no gradient is asked for, prompts of the data alone, and once over a network."""
    Composite({"mine": reward("by_numpy", differentiable=False)}).try_out(["a"], CPU)
    Composite({"mine": reward("looked_up")}).try_out(["a known one"], CPU)
    Composite({"mine": reward("looked_up")}).try_out([], CPU)
    with pytest.raises(RewardError, match="KeyError"):
        Composite({"mine": reward("looked_up")}).try_out(["another"], CPU)
    SEEN.clear()
    Composite({"mine": reward("over_a_network", timeout=20.0)}).try_out(["a"], CPU)
    assert SEEN == [2]


def test_its_error_names_what_the_recipe_calls_it():
    with pytest.raises(RewardError, match=r"reward mine: .*ZeroDivisionError"):
        Composite({"mine": reward("divides")})(IMAGES, PROMPTS)


class Near:
    def __init__(self, words, weight=1.0):
        self.words = words

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3))


VALUE = 5


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        (
            "Near",
            {"words": [], "color": 1},
            [(".arguments", "unexpected keyword argument 'color'. It takes words, weight.")],
        ),
        ("Near", {}, [(".arguments", "missing a required argument: 'words'. It takes words, weight.")]),
        ("Near", {"words": []}, []),
        ("VALUE", {}, [(".function", "VALUE is 5, not a function (images, prompts) -> scores. Name one.")]),
        ("bright", {}, []),
    ],
)
def test_what_cannot_be_built_is_told_by_its_key_before_it_is(name, arguments, said):
    config = PythonConfig(function=f"{__name__}:{name}", arguments=arguments)
    found = list(config.conflicts({}))
    assert [key for key, _ in found] == [key for key, _ in said]
    assert all(words in text for (_, text), (_, words) in zip(found, said, strict=True))
