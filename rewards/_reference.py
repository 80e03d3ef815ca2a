"""Reference images: files that a reward compares with, one for all prompts or one a prompt."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from rewards._errors import RewardError
from rewards._images import ImageError, read_image
from rewards._load import given_file
from rewards._preprocess import differentiable_resize


def missing(reward: str, given: str | Mapping[str, str], prompts: Iterable[str]) -> Iterator[str]:
    """What is to be said of prompts without a reference."""
    if not isinstance(given, str):
        yield from (_none(reward, prompt) for prompt in prompts if prompt not in given)


def _none(reward: str, prompt: str) -> str:
    return f"reward {reward}: there is no reference for the prompt {prompt!r}. Add it."


class References:
    """`given` is a file, or {prompt: file}."""

    def __init__(self, reward: str, given: str | Mapping[str, str]):
        self.reward = reward
        self.files = {"": given} if isinstance(given, str) else dict(given)
        self.one = isinstance(given, str)
        for path in self.files.values():
            given_file(reward, "reference", path)
        self._read: dict[str, Tensor] = {}

    def key(self, prompt: str) -> str:
        """Under which the prompt's reference is found; the same for prompts that share one."""
        if self.one:
            return ""
        if prompt not in self.files:
            raise RewardError(_none(self.reward, prompt))
        return prompt

    def image(self, key: str, size: tuple[int, int] | None, device: torch.device) -> Tensor:
        """(1, 3, h, w) in [0, 1], resized as PIL does unless `size` is None."""
        if key not in self._read:
            self._read[key] = _open(self.reward, self.files[key])
        image = self._read[key].to(device)
        return image if size is None else differentiable_resize(image, size)

    def stack(self, prompts: Sequence[str], size: tuple[int, int], device: torch.device) -> Tensor:
        """The references of B prompts, (B, 3, h, w)."""
        return torch.cat([self.image(self.key(prompt), size, device) for prompt in prompts])


def _open(reward: str, path: str) -> Tensor:
    try:
        return read_image(given_file(reward, "reference", path))[None]
    except ImageError as error:
        raise RewardError(f"reward {reward}: reference={error}") from None
