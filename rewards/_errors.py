"""What goes wrong with rewards and components, in one line each; importing this imports no torch."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any


class RewardError(ValueError):
    """A reward that cannot be built, or that broke its contract. Says which reward, what, why, and what to do."""


class RegistryError(ValueError):
    """A name that no component has, or an object that is not a component. The message says what to do."""


def refused(read: Callable[[str], Any], prompts: Iterable[str]) -> Iterator[str]:
    """What `read` says of each of these prompts for which it raises a RewardError."""
    for prompt in prompts:
        try:
            read(prompt)
        except RewardError as error:
            yield str(error)
