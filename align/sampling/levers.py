"""sampling.levers: what makes the steps cheaper that carry no gradient (the prefix), and the decoder that the gradient
goes through, each at a price in the gradient.

They act in training alone, where the last steps carry the gradient: pictures and evaluations are drawn in full.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from align.registry import ComponentConfig

if TYPE_CHECKING:
    from torch import Tensor

    from align.sampling.block import SamplingConfig
    from samplers import Denoiser, Grid

RULES = ("ddim", "euler")
FAST = {"guidance": "refresh", "precision": "bf16"}
"""What `fast` stands for: the levers after which the gradient points nearly where the exact one does (cosines of
0.9: docs/lab/levers.md). The others (guidance none, steps, a kept state) turn it, and go by their names alone."""
OF_PREFIX = ("guidance", "steps", "precision", "reuse")


class LeversConfig(ComponentConfig):
    """Cheaper steps before the window; scripts/bench/levers.py measures what they do to the gradient."""

    fast: bool = False
    """The levers that turn the gradient least, spelled out when the recipe is read: guidance: refresh, and on a GPU
    precision: bf16. What does not apply is left out, what is set beside it stays; --dry-run says both."""
    guidance: Literal["full", "refresh", "none"] = "full"
    """Of the prefix. refresh: the unprompted branch at each second step, its difference carried on between; none: no
    guidance."""
    steps: int | None = Field(default=None, ge=1)
    """Network calls of the prefix, spread over its times, in place of all."""
    precision: Literal["full", "bf16"] = "full"
    """bf16: the prefix under autocast."""
    reuse: int = Field(default=1, ge=1)
    """Updates in a row on the same prompts and noises. The first of them runs the prefix; the others begin where it
    ended, with an adapter that has moved on since: `stale`, in the metrics, is how far, in the last of them, that state
    is from where the prefix would end now, over its norm."""

    decoder: str | None = None
    """A small decoder through which the reward's gradient goes in training, in place of the autoencoder's: folder or
    Hub id of diffusers' AutoencoderTiny, such as madebyollin/taesd for Stable Diffusion. Less time and memory, at other
    pixels: samples, panels and the report are decoded in full."""

    @property
    def any(self) -> bool:
        """Whether the prefix is another than the recipe's."""
        return any(getattr(self, key) != type(self).model_fields[key].default for key in OF_PREFIX)

    def spelled_out(self, block: "SamplingConfig") -> "LeversConfig":
        """With what `fast` stands for in this block."""
        if not self.fast:
            return self
        free = {key: value for key, value in FAST.items() if key not in self.model_fields_set}
        return self.model_copy(update={key: value for key, value in free.items() if not obstacle(key, block)})

    def problems(self, block: "SamplingConfig") -> Iterator[tuple[str, str]]:
        """(key, what is wrong) beside the rest of the block."""
        prefix = block.num_calls - block.last_k
        plain = block.step_rule in RULES and not block.stochastic and block.solver is None
        if self.any and (block.window != "last" or not plain):
            yield "levers", "are for window=last and deterministic ddim or euler. Remove them, or change those."
        elif self.any and block.how.of_trajectory:
            yield "levers", "act on one scale or {t: w}, and guidance goes by its calls already. Remove one of the two."
        elif self.any and prefix < 1:
            yield "levers", f"have no steps to act on: last_k={block.last_k} of {block.num_calls}. Remove them."
        elif self.steps is not None and self.steps > prefix:
            yield "levers", f"ask for {self.steps} steps, and the prefix has {prefix}. Lower levers.steps."


def obstacle(key: str, block: "SamplingConfig") -> str:
    """Why a lever of FAST is left out of this block; "" where it applies."""
    for _, text in LeversConfig.model_validate({key: FAST[key]}).problems(block):
        return f"levers {text.partition('.')[0]}"
    if key == "guidance" and not block.how.calls_in_full(block.num_calls):
        return "there is none"
    if key == "guidance" and block.num_calls - block.last_k < 2:
        return "one step before the window is guided in full"
    if key == "precision":
        import torch

        return "" if torch.cuda.is_available() else "this machine has no GPU"
    return ""


def of_recipe(block: "SamplingConfig", recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Between reuse, decoder and the rest of a recipe, at the block's own key."""
    objective, data = recipe.get("objective"), getattr(recipe.get("data"), "name", "prompts")
    if block.levers is None:
        return
    if block.levers.decoder is not None and objective is not None and not getattr(objective, "decodes", False):
        yield ".levers.decoder", f"is for a reward's gradient, and {objective.name} sends none through it. Remove it."
    if block.levers.reuse == 1:
        return
    if objective is not None and not getattr(objective, "reuses", False):
        yield ".levers.reuse", f"keeps a state for several updates, and {objective.name} cannot. Set it to 1."
    elif data != "prompts":
        yield ".levers.reuse", f"keeps a state for several updates of the data prompts, not of {data}. Set it to 1."


def prefixed(
    block: "SamplingConfig", denoiser: "Denoiser", uncond: Any, x_T: "Tensor", grid: "Grid", cond: Any
) -> "Tensor":
    """The state where the window begins; without gradient."""
    import torch

    from samplers import Grid, sample

    levers, n = block.levers, block.num_calls - block.last_k
    assert levers is not None
    times = grid.times[: n + 1]
    if levers.steps is not None:
        times = times[torch.linspace(0, n, levers.steps + 1).round().long()]
    how = block.how
    if levers.guidance == "none":
        how = type(how)(scale=1.0)
    elif levers.guidance == "refresh":
        how = how.model_copy(update={"skip": "refresh", "every": 2, "reuse": "delta2"})
    changed = block.model_copy(update={"guidance": how, "num_steps": len(times) - 1})
    guided = changed.guided(denoiser, uncond)  # also without guidance: roles by time are the block's
    kind = "cpu" if x_T.is_meta else x_T.device.type  # a plan's tensors: there is no autocast of the meta device
    with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=levers.precision == "bf16"):
        x = sample(guided, x_T, Grid(times, grid.init_scale), cond, step=block.step()).x0
    return x.to(x_T.dtype)


def savings(block: "SamplingConfig") -> str:
    """What each would save of the network's work before the steps that carry gradient, for a plan, as settings to
    paste; "" where none can."""
    prefix, free = block.num_calls - block.last_k, block.model_copy(update={"levers": LeversConfig(guidance="none")})
    if prefix < 2 or block.stochastic or any(free.levers.problems(free)):  # type: ignore[union-attr]
        return ""
    guided = block.how.calls_in_full(block.num_calls) > 0
    rows = (2 if guided else 1) * prefix
    said = {"steps=" + str(prefix // 2): rows - (2 if guided else 1) * (prefix // 2)}
    if guided:
        said = {"fast=true": prefix // 2, "guidance=none": prefix, **said}
    shares = {**said, "reuse=4": rows - rows / 4}
    return "of the calls before the steps with gradient would save " + ", ".join(
        f"{saved / rows:.0%} sampling.levers.{key}" for key, saved in shares.items()
    )


def described(block: "SamplingConfig", network: str) -> str:
    """What `fast` has taken and left out, for a plan; "" where it is not asked for. `network`: its dtype."""
    levers = block.levers
    if levers is None or not levers.fast:
        return ""
    taken, left = [], []
    for key, value in FAST.items():
        if (has := getattr(levers, key)) == value:
            bare = "" if key == "guidance" or network != value else ", of the adapter alone: the network has it already"
            taken.append(f"{key} {value}{bare}")
        else:
            default = type(levers).model_fields[key].default
            why = (has == default and obstacle(key, block)) or f"{key}: {has} is set beside it"
            left.append(f"{key} {value} ({why})")
    said = [f"takes {' and '.join(taken)}" if taken else "takes nothing"]
    return "; ".join([*said, *([f"leaves out {', '.join(left)}"] if left else [])])
