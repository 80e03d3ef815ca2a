"""What rewards have in common that ask a vision-language model about an image: the question's form, and its pixels."""

from collections.abc import Iterator

from rewards._errors import RewardError
from rewards._vlm import knows_pixels


def misformed(question: str | None) -> Iterator[tuple[str, str]]:
    """A conflict where a question has braces that stand for nothing."""
    try:
        (question or "").format(prompt="")
    except (KeyError, IndexError, ValueError):
        yield ".question", "has braces other than {prompt}. Write them double: {{ }}."


def need_pixels(reward: str, model: str) -> None:
    """Refuses a gradient through a model whose pixels pass through its own processor."""
    if not knows_pixels(model):
        raise RewardError(
            f"reward {reward}: the pixels of {model} pass through its processor, without gradient. Set "
            "differentiable: false, or take a Qwen-VL."
        )
