"""Which side of a judgement is trained towards: what is preferred, or what is not."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from align.registry import ComponentConfig


class SidedConfig(ComponentConfig):
    """Settings of an objective that can also train a negative (Wang et al., Diffusion-NPO, arXiv 2505.11245)."""

    train: Literal["default", "negative"] = "default"
    """negative: with winners and losers swapped, an adapter that draws what is not wanted. It goes on the unprompted
    branch of guidance, and so does what this run shows and reports: see sampling.guidance.negative."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().conflicts(recipe)
        for key in ("sampling", "evaluate") if self.train == "negative" else ():
            block = recipe.get(key)
            block = block if key == "sampling" else getattr(block, "sampling", None)
            how = getattr(block, "how", None)
            if how is not None and (how.negative is None or not how.negative.adapters.get("negative")):
                yield (
                    f"{key}.guidance" if key == "sampling" else "evaluate.sampling.guidance",
                    "does not say how the negative is used that this run trains. Set guidance.negative, such as "
                    "{scale: 7.5, negative: {adapters: {negative: 1}}}.",
                )

    @property
    def swapped(self) -> bool:
        return self.train == "negative"
