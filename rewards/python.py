"""A reward of your own: any function or class, by dotted path or file path.

# my_rewards.py
def warmth(images, prompts):                    # (B, 3, H, W) in [0, 1], B prompts -> (B,), higher is better
    return (images[:, 0] - images[:, 2]).mean((1, 2))

rewards: {warmth: {name: python, function: my_rewards.py:warmth}}

In Python, where it may be defined in a notebook: align.train(..., rewards={"warmth": warmth}).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from torch import Tensor

from rewards._base import Reward
from rewards._card import UNSTATED, Card
from rewards._config import RewardConfig
from rewards._errors import RegistryError, RewardError
from rewards._registry import load_object, path_of


class PythonConfig(RewardConfig):
    name: Literal["python"] = "python"
    function: Annotated[str, BeforeValidator(lambda value: path_of(value) if callable(value) else value)]
    """`package.module:name` or `path/to/file.py:name` of a function (images, prompts) -> scores, or of a class whose
    instances are such functions. In Python also the function itself."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments: of the class when it is one, otherwise of every call."""
    differentiable: bool = True
    """Whether its scores carry a gradient; false for anything that goes through PIL, numpy or an API."""

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
            load_object(self.function)
        except RegistryError as error:
            yield ".function", str(error)


class Python(Reward):
    """What the user's function says; higher is better. An nn.Module is frozen and moved to the images' device."""

    Config = PythonConfig

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
        return self.function(images, prompts, **self.arguments)
