"""A reward of your own: any function or class, by dotted path or file path.

# my_rewards.py
def warmth(images, prompts):                    # (B, 3, H, W) in [0, 1], B prompts -> (B,), higher is better
    return (images[:, 0] - images[:, 2]).mean((1, 2))

rewards: {warmth: {name: python, function: my_rewards.py:warmth}}

In Python, where it may be defined in a notebook: align.train(..., rewards={"warmth": warmth}).
"""

import inspect
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from rewards._base import Reward, check_scores
from rewards._card import UNSTATED, Card
from rewards._config import RewardConfig
from rewards._errors import RegistryError, RewardError
from rewards._patience import within
from rewards._registry import load_object, path_of

HERE = Path(__file__).parent
STEPS = ("round", "floor", "ceil", "trunc", "sign")
TRIED, TRIED_BY = (64, 512, 32, 1024), ("a red circle", "two blue squares")
"""Sides of the images that a function is tried with, one after another where it fails, and prompts where the data have
none yet."""


class PythonConfig(RewardConfig):
    name: Literal["python"] = "python"
    function: Annotated[str, BeforeValidator(lambda value: path_of(value) if callable(value) else value)]
    """`package.module:name` or `path/to/file.py:name` of a function (images, prompts) -> scores, or of a class whose
    instances are such functions. In Python also the function itself."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments: of the class when it is one, otherwise of every call."""
    differentiable: bool = True
    """Whether its scores carry a gradient; false for anything that goes through PIL, numpy or an API."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds that a call may take before the run ends with an error. Default: any time."""

    card = Card(
        measures="What your function says.",
        range="yours",
        size="yours",
        hacking="Look at the samples: whatever the function forgot to forbid.",
        partner="clip",
        licences={"your function": UNSTATED},
    )

    def has_gradient(self) -> bool:
        return self.differentiable

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        try:
            found = load_object(self.function)
        except RegistryError as error:
            yield ".function", str(error)
            return
        if not callable(found):
            shown = " ".join(repr(found).split())[:80]
            yield ".function", f"{self.function} is {shown}, not a function (images, prompts) -> scores. Name one."
        elif isinstance(found, type):
            try:
                inspect.signature(found).bind(**self.arguments)
            except TypeError as error:
                takes = ", ".join(inspect.signature(found).parameters) or "none"
                yield ".arguments", f"{self.function} cannot be built: {error}. It takes {takes}. Set those."
            except ValueError:  # of one that is not written in Python
                pass


class Python(Reward):
    """What the user's function says; higher is better. An nn.Module is frozen and moved to the images' device."""

    Config = PythonConfig
    config: PythonConfig

    def __init__(self, config: PythonConfig):
        super().__init__(config, name=config.function.partition(":")[2])
        function = load_object(config.function)
        self.arguments = {} if isinstance(function, type) else config.arguments
        if isinstance(function, type):
            try:
                function = function(**config.arguments)
            except TypeError as error:
                raise RewardError(f"reward {self.name}: {config.function} cannot be built: {error}.") from error
        if not callable(function):
            raise RewardError(f"reward {self.name}: {config.function} is not a function (images, prompts) -> scores.")
        self.function: Callable[..., Any] = function

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        def call() -> Any:
            return self.function(images, prompts, **self.arguments)

        try:
            return call() if self.config.timeout is None else within(call, self.config.timeout, images.device)
        except (RewardError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise RewardError(self._told(error)) from error

    def try_out(self, label: str, prompts: Sequence[str], device: torch.device) -> None:
        """Scores two images of noise, together and alone. An error of the function itself may be of their size or of a
        prompt that it does not know: it is one where it comes at all of TRIED, with prompts of the data."""
        try:
            inspect.signature(self.function).bind(None, None, **self.arguments)
        except TypeError as error:
            raise RewardError(
                f"reward {label}: {self.config.function} cannot be called with (images, prompts): {error}."
            ) from error
        except ValueError:  # of one that is not written in Python
            pass
        words, errors = ([*prompts[:2]] * 2 or [*TRIED_BY])[:2], []
        gradient, remote = self.differentiable, self.config.timeout is not None
        with torch.set_grad_enabled(gradient), torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):
            for side in TRIED[:1] if remote else TRIED:
                noise = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
                images = noise.to(device).requires_grad_(gradient)
                try:
                    scores = self(images, words)
                    break
                except RewardError as error:
                    errors.append(error)
            else:
                if prompts and not remote:
                    raise errors[0]
                return
            check_scores(scores, images, words, name=label, differentiable=self.differentiable)
            if gradient and (step := _flat(scores, images)):
                raise RewardError(
                    f"reward {label}: its gradient is 0 everywhere, since {step}() is flat between its steps. Leave it "
                    "out, or set differentiable: false and another objective."
                )
            if not remote:  # what goes over a network is not asked again and again
                self._alone(label, images, words, scores)

    def _alone(self, label: str, images: Tensor, words: Sequence[str], scores: Tensor) -> None:
        """Raises RewardError where an image's score is another when it comes alone, of a function that gives the same
        images the same scores."""
        try:
            again = self(images, words)
            alone = torch.cat([self(images[i : i + 1], words[i : i + 1]).reshape(-1) for i in range(2)])
        except (RewardError, AttributeError):
            return
        if torch.equal(again, scores) and not torch.allclose(alone, scores, rtol=1e-2, atol=1e-4):
            raise RewardError(
                f"reward {label} gives an image {scores[0].item():.4g} beside another and {alone[0].item():.4g} alone: "
                "its score depends on the batch. Do not normalise over the batch; rewards.*.weight scales a score."
            )

    def _told(self, error: Exception) -> str:
        """Where in the user's file, and what."""
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}".removesuffix(": ")
        if "numpy() on Tensor that requires grad" in said:
            said = "numpy breaks the gradient. Stay in torch, or set differentiable: false and another objective"
        if isinstance(error, TimeoutError) and self.config.timeout is not None:
            return f"reward {self.name}: {said}. Raise rewards.*.timeout, or look at what it waits for."
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "site-packages" not in f.filename and Path(f.filename).parent != HERE]
        place = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
        return f"reward {self.name}: {place}{said}. Correct the function; ALIGN_TRACEBACK=1 shows the whole way."


def _flat(scores: Tensor, images: Tensor) -> str:
    """The step function on the way to `scores` by which the gradient at `images` is exactly 0; "" where there is none
    or the gradient is not 0. A score that is flat at noise alone, such as a hinge, has none."""
    (gradient,) = torch.autograd.grad(scores.sum(), images, retain_graph=True, allow_unused=True)
    if gradient is None or gradient.any():
        return ""
    waiting, seen = [scores.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (name := node.name().removesuffix("Backward0").lower()) in STEPS:
            return name
        waiting += [parent for parent, _ in node.next_functions]
    return ""
