"""sampling.guidance.negative: which adapters the unprompted branch of guidance has."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from align.registry import ComponentConfig

KNOWN = ("default", "negative")


class NegativeConfig(ComponentConfig):
    """Adapters of the unprompted branch (align/policy/branches.py has the papers)."""

    adapters: dict[str, float] = Field(min_length=1)
    """{default: a, negative: b}: the prompted branch's own times a, and the adapter `negative` times b; what is not
    named is 0. {default: 1} is plain guidance, {default: 0.5} a weaker self (autoguidance)."""
    source: str | None = None
    """Where `negative` lies: a run, an adapter's folder or file, a checkpoint, a Hub id; not where it is trained."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if unknown := sorted(self.adapters.keys() - {*KNOWN}):
            yield ".adapters", f"names {unknown[0]}. The two that there are: {' and '.join(KNOWN)}."
        trained = getattr(recipe.get("objective"), "train", "default") == "negative"
        if trained and self.source is not None:
            yield (
                ".source",
                f"is {self.source}, and this run trains the negative (objective.train). Remove one of the two.",
            )
        if not trained and self.source is None and "negative" in self.adapters:
            yield ".source", "is missing: where does the adapter `negative` lie? Name a run, a folder or a Hub id."

    def described(self) -> str:
        """For people: "against default x 0.5"."""
        return "against " + (" + ".join(f"{name} x {weight:g}" for name, weight in self.adapters.items()))
