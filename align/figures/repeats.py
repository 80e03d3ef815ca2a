"""Rows that share a prompt: how sure a mean over rows is when it is the prompts that are drawn, and not the rows."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

Asked = Sequence[Hashable] | None
"""What each row was asked: rows with equal entries are of one prompt. None: every row is a prompt of its own."""


class Repeats:
    """Which of n rows share a prompt."""

    def __init__(self, asked: Sequence[Hashable]):
        numbers = {one: number for number, one in enumerate(dict.fromkeys(asked))}
        self._place = torch.tensor([numbers[one] for one in asked])
        self._sizes = torch.bincount(self._place).double()

    def __len__(self) -> int:
        """How many prompts there are."""
        return len(self._sizes)

    @property
    def effective(self) -> float:
        """As many prompts with equally many rows would weigh alike (Kish 1965): n^2 / sum_g n_g^2."""
        return float(self._sizes.sum() ** 2 / self._sizes.square().sum())

    @property
    def freedom(self) -> float:
        """Degrees of freedom of `variance`: one less than the effective prompts (after Carter, Schnepel & Steigerwald
        2017), and at least 1."""
        return max(self.effective - 1, 1.0)

    def totals(self, values: Tensor) -> Tensor:
        """Values (n,) -> the sum over each prompt's rows (G,)."""
        return torch.zeros(len(self), dtype=torch.float64).index_add(0, self._place, values.double())

    def variance(self, values: Tensor) -> float:
        """Of the mean of values (n,), in their unit squared, for new prompts: with the residuals' sums r_g,
        sum_g r_g^2 / (1 - n_g / n) / n^2 (Bell & McCaffrey 2002). Of distinct prompts it is s^2 / n."""
        number = len(values)
        sums = self.totals(values - values.mean())
        return float((sums.square() / (1 - self._sizes / number)).sum()) / number**2


def repeats(asked: Asked, number: int) -> Repeats | None:
    """Of `number` rows; None where no two share a prompt.

    Raises:
        ValueError: `asked` is not of so many rows.
    """
    if asked is None:
        return None
    if len(asked) != number:
        raise ValueError(f"{len(asked)} prompts were given for {number} rows. Give one for each row.")
    return None if len(set(asked)) == number else Repeats(asked)


def told(rows: int, prompts: int | None) -> str:
    """How many prompts, to stand before the word prompts: "256", or "1024 images of 383" where some repeat."""
    return str(rows) if prompts in (None, rows) else f"{rows} images of {prompts}"
