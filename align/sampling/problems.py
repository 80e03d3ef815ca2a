"""What in a sampling block is fine by itself and cannot work with the rest of it: (key, what is wrong)."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.sampling.block import SamplingConfig

STOCHASTIC = ("ddim", "euler_ancestral")  # the rules that take an eta
LINEAR = ("ddim", "euler", "euler_ancestral")  # the rules that are one line in (x0, eps), whose noise a law can choose
MOMENTUM = ("heavy_ball", "ghvb")  # the rules that take an order and a beta
UNBOUNDED = ("flow_sde", "dance_sde")  # the laws whose level is a rate, not a share


def of_rule(block: "SamplingConfig") -> Iterator[tuple[str, str]]:
    low, high = block.guidance_interval
    if not 0 <= low <= high <= 1:
        yield "guidance_interval", f"is {[low, high]}. Set it to two times t with 0 <= low <= high <= 1."
    if block.guidance is not None:
        for key in ("guidance_scale", "guidance_interval"):
            if getattr(block, key) != type(block).model_fields[key].default:
                inner = key.removeprefix("guidance_")
                yield key, f"is set beside the block guidance. Say it as guidance.{inner}, and remove this one."
    if block.negative_prompt and block.num_rows == block.num_calls:
        yield (
            "negative_prompt",
            "is set, and at guidance 1 nothing moves away from it. Add sampling.guidance_scale=3.",
        )
    if block.eta and block.step_rule not in STOCHASTIC and block.noise_law is None:
        yield "eta", f"is {block.eta}, and {block.step_rule} has no eta. Use {' or '.join(STOCHASTIC)}, or remove it."
    if (block.eta or 0) > 1 and block.noise_law not in UNBOUNDED:
        yield "eta", f"is {block.eta}. Set it within [0, 1]: it is the share of a step's noise that is fresh."
    if block.noise_law is not None and block.step_rule not in LINEAR:
        yield "noise_law", f"is {block.noise_law}, and {block.step_rule} takes none. Use {', '.join(LINEAR)}."
    if block.spacing == "karras" and block.step_rule in ("ddim", "leapfrog", *MOMENTUM):
        yield (
            "spacing",
            f"is karras, not for {block.step_rule}. Use euler, heun or dpmpp_2m, or another spacing.",
        )
    for key in ("order", "beta") if block.step_rule not in MOMENTUM else ():
        if getattr(block, key) != type(block).model_fields[key].default:
            yield key, f"is {getattr(block, key)}, and {block.step_rule} takes none. Use {' or '.join(MOMENTUM)}."
    if block.spacing is not None and block.step_rule == "lcm":
        yield "spacing", f"is {block.spacing}, and an LCM has its own times. Remove it, or set sampling.spacing=null."

    if block.solver is not None:
        for key in ("step_rule", "noise_law", "eta", "spacing", "timesteps"):
            if getattr(block, key) != type(block).model_fields[key].default:
                yield key, f"is {getattr(block, key)}, and the solver has steps of its own. Remove it, or solver."
    if block.roles is not None:
        untils = [until for _, until in block.roles]
        if not untils or untils[-1] != 0 or any(b >= a for a, b in pairwise([1.0, *untils])):
            yield "roles", f"end at {untils}. Let the times fall from below 1, each less than the one before, to 0."
        if block.how.negative is not None:
            yield "roles", "are set beside guidance.negative, which has adapters of its own. Remove one of the two."
    if block.timesteps is not None:
        yield from _of_timesteps(block, block.timesteps)


def _of_timesteps(block: "SamplingConfig", timesteps: Sequence[int]) -> Iterator[tuple[str, str]]:
    if block.step_rule not in ("ddim", "lcm", "leapfrog", *MOMENTUM):
        yield "timesteps", f"are set, and {block.step_rule} has times of its own. Use ddim or lcm, or remove them."
    if block.spacing is not None:
        yield "timesteps", f"are set beside spacing={block.spacing}. Remove one of the two."
    if len(timesteps) != block.num_steps:
        yield "timesteps", f"are {len(timesteps)}, and num_steps is {block.num_steps}. Make the two agree."
    if any(later >= earlier for earlier, later in pairwise(timesteps)):
        yield "timesteps", f"are {list(timesteps)}. Each must be less than the one before."


def of_window(block: "SamplingConfig") -> Iterator[tuple[str, str]]:
    if block.levers is not None:
        yield from block.levers.problems(block)
    calls, named = block.num_calls, "network calls" if block.step_rule == "heun" else "num_steps"
    counts = {"last": "last_k", "contiguous": "max_k", "subset": "subset_k"}
    if block.window in counts and (count := getattr(block, counts[block.window]) or 0) > calls:
        key = counts[block.window]
        yield (
            key,
            (
                f"{count} exceeds {named}={calls}: gradients cannot flow through more steps than are taken. "
                f"Set {key} <= {calls}."
            ),
        )
    if block.memory == "reversible" and block.step_rule != "leapfrog":
        yield "memory", f"is reversible, and {block.step_rule} cannot be run backwards. Set step_rule: leapfrog."
    if block.window == "contiguous" and block.min_k > (block.max_k or calls):
        yield "min_k", f"{block.min_k} exceeds max_k={block.max_k or calls}. Set min_k <= max_k."
    if block.window == "normal" and not 1 <= block.normal_mean < calls:
        yield "normal_mean", f"{block.normal_mean} is none of the {calls} steps. Set it within [1, {calls})."


def of_memory(block: "SamplingConfig", recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Between memory=reversible and the rest of a recipe, at the block's own key."""
    if block.memory != "reversible":
        return
    objective = recipe.get("objective")
    if objective is not None and not getattr(objective, "reversible", False):
        name = getattr(objective, "name", "the objective")
        yield ".memory", f"is reversible, and {name} does not differentiate a chain whole. Set it to checkpointed."
    if getattr(recipe.get("adapter"), "dropout", 0):
        yield ".memory", "is reversible, and no call is made twice alike under adapter.dropout. Set that to 0."
