"""How a stock diffusers pipeline draws what a recipe's sampling says: its scheduler, and what it is called with.

A card writes it as lines of Python, `Run.pipeline` does it; what diffusers has not is said in `missing`.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from align.config import Recipe
from align.registry import model_family
from align.sampling import SamplingConfig
from align.sampling.problems import MOMENTUM
from align.share.branches import possible

TABLE = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "lcm": "LCMScheduler",
    "heavy_ball": "DDIMScheduler",  # the same times, without the momentum
    "ghvb": "DDIMScheduler",
    "leapfrog": "DDIMScheduler",
}
"""The step rules on a table of noise levels, as diffusers' schedulers are called."""
BY_HAND = "TCDScheduler"  # at eta 0 it steps as DDIM, whose own scheduler takes no timesteps
WHOLE: dict[str, Any] = {"_use_default_values": []}  # else from_config drops what was a default of the class before
FIXED: dict[str, dict[str, Any]] = {
    TABLE["ddim"]: {"clip_sample": False},
    BY_HAND: {"clip_sample": False},
    TABLE["lcm"]: {"clip_sample": False},
    TABLE["heun"]: {"clip_sample": False},
    TABLE["dpmpp_2m"]: {"algorithm_type": "dpmsolver++", "solver_order": 2},
}
"""What our step rules are, whatever the checkpoint's scheduler says."""


@dataclass(frozen=True)
class Stock:
    """A scheduler by its class (None: the checkpoint's own), its settings, and the arguments of a call."""

    scheduler: str | None
    settings: Mapping[str, Any]
    call: Mapping[str, Any]
    missing: tuple[str, ...] = ()
    """What the recipe says and no stock pipeline does."""

    def lines(self) -> list[str]:
        """The lines that give `pipeline` its scheduler."""
        said = [f"# {text}" for text in self.missing]
        if self.scheduler is None:
            return said
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items()).replace("'", '"')
        return [
            *said,
            'config = {**pipeline.scheduler.config, "_use_default_values": []}  # all of it, defaults too',
            f"pipeline.scheduler = {self.scheduler}.from_config(config{settings})",
        ]

    def arguments(self) -> str:
        """Those of the call, as they are written after the prompt."""
        return ", ".join(f"{name}={value!r}".replace("'", '"') for name, value in self.call.items())

    def put_on(self, pipeline: Any) -> Any:
        """`pipeline` with this scheduler, drawing as said wherever a call does not say otherwise."""
        import diffusers

        if self.scheduler is not None:
            config = {**pipeline.scheduler.config, **WHOLE}
            pipeline.scheduler = getattr(diffusers, self.scheduler).from_config(config, **self.settings)
        kind, defaults = type(pipeline), dict(self.call)
        names = list(inspect.signature(kind.__call__).parameters)[1:]

        def call(self: Any, *args: Any, **given: Any) -> Any:
            """As the stock pipeline's, but drawing as the recipe says unless told otherwise."""
            first = ["prompt", *(n for n in names if n != "prompt")] if args and _is_text(args[0]) else names
            given = {**dict(zip(first, args, strict=False)), **given}
            own = {name: value for name, value in defaults.items() if name in names}
            if given.keys() & {"num_inference_steps", "sigmas"}:
                own.pop("timesteps", None)  # they are made for the recipe's number of steps
            if "negative_prompt" in own and isinstance(prompts := given.get("prompt"), list):
                own["negative_prompt"] = [own["negative_prompt"]] * len(prompts)  # pipelines want the two alike
            return kind.__call__(self, **{**own, **given})

        call.__signature__ = inspect.signature(kind.__call__)  # type: ignore[attr-defined]
        same = {"__call__": call, "__module__": kind.__module__, "__doc__": kind.__doc__}
        pipeline.__class__ = type(kind.__name__, (kind,), same)  # a pipeline of its class, that is saved as one too
        return pipeline


def _is_text(value: Any) -> bool:
    """Whether a call's first argument is its prompt, also where the pipeline's own first one is a picture."""
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and isinstance(value[0], str))


def stock(recipe: Recipe) -> Stock:
    """Of a recipe's model, sampling as its scores are made: by `evaluate.sampling` where there is one; a
    few-step student as it was trained."""
    reported = None if getattr(recipe.objective, "few_step", False) else recipe.evaluate
    sampling = (reported.sampling if reported else None) or recipe.sampling
    family = model_family(recipe.model)
    published = getattr(family, "published", ())
    own: Mapping[str, Any] = published[0].scheduler if published else {}
    on_table = bool(own.get("beta_schedule")) and not own.get("use_flow_sigmas")
    scheduler, settings = _on_table(sampling) if on_table else _on_flow(sampling, own)
    asked = family.asked(recipe.model, sampling.how.nearest) if hasattr(family, "asked") else {}
    call: dict[str, Any] = {"num_inference_steps": sampling.num_steps}
    if sampling.timesteps is not None:
        call = {"timesteps": list(sampling.timesteps)}
    call |= asked
    if sampling.negative_prompt and getattr(family, "takes_negative", False):
        call["negative_prompt"] = sampling.negative_prompt
    if sampling.image_size is not None:
        call |= dict(zip(("height", "width"), sampling.image_size, strict=True))
    if scheduler in (TABLE["ddim"], BY_HAND) and (scheduler == BY_HAND or _eta(sampling)):
        call["eta"] = _eta(sampling) if scheduler != BY_HAND else 0.0
    missing = [*_missing(sampling, scheduler, own, on_table, splits=possible(recipe))]
    if sampling.negative_prompt and "negative_prompt" not in call:
        missing.append(f"drawn here away from {sampling.negative_prompt!r}, which this pipeline cannot be told as text")
    return Stock(scheduler, settings, call, tuple(missing))


def _on_table(sampling: SamplingConfig) -> tuple[str, dict[str, Any]]:
    rule, spacing = sampling.step_rule, sampling.spacing
    name = BY_HAND if rule == "ddim" and sampling.timesteps is not None else TABLE[rule]
    settings = dict(FIXED.get(name, {}))
    if spacing == "karras":
        settings["use_karras_sigmas"] = True
    elif spacing is not None:
        settings |= {"timestep_spacing": spacing, "use_karras_sigmas": False}
    return name, settings


def _on_flow(sampling: SamplingConfig, own: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """On a flow DDIM, Euler and DPM-Solver++ of order 1 are one step; the times are the checkpoint's scheduler's."""
    if own.get("use_flow_sigmas") and sampling.step_rule in ("ddim", "euler"):
        return TABLE["dpmpp_2m"], {"solver_order": 1}
    return None, {}


def _eta(sampling: SamplingConfig) -> float:
    """DDIM's; the noise laws but its own have no place in a stock scheduler."""
    if sampling.noise_law not in (None, "ddim"):
        return 0.0
    return (1.0 if sampling.noise_law else 0.0) if sampling.eta is None else sampling.eta


def _missing(
    sampling: SamplingConfig, scheduler: str | None, own: Mapping[str, Any], on_table: bool, *, splits: bool
) -> Iterator[str]:
    rule = sampling.step_rule
    known = ("dpmpp_2m", "ddim", "euler") if own.get("use_flow_sigmas") else ("ddim", "euler")
    if not on_table and own and rule not in known:
        yield f"drawn here by {rule}, which this pipeline's scheduler is not"
    if sampling.noise_law is not None and (sampling.noise_law, scheduler) != ("ddim", TABLE["ddim"]):
        yield f"drawn here with the noise of {sampling.noise_law}, which diffusers' schedulers have not"
    elif rule == "ddim" and _eta(sampling) and scheduler != TABLE["ddim"]:
        yield f"drawn here at eta {sampling.eta:g}, which this scheduler has not"
    elif rule == "euler_ancestral" and sampling.eta not in (None, 1.0):
        yield f"drawn here at eta {sampling.eta:g}; the ancestral scheduler's is 1"
    if sampling.spacing == "karras" and rule == "euler_ancestral":
        yield "drawn here at Karras' noise levels, which the ancestral scheduler has not"
    if rule in MOMENTUM and on_table:
        yield f"drawn here by {rule} of order {sampling.order} at beta {sampling.beta:g}, which diffusers has not"
    if rule == "leapfrog" and on_table:
        yield "drawn here by leapfrog, which diffusers has not"
    if sampling.solver is not None:
        yield "drawn here by learned times and steps, which diffusers has not"
    if sampling.roles is not None:
        told = ", ".join(
            f"{'the base' if name == 'reference' else 'the adapter'} until t = {t:g}" for name, t in sampling.roles
        )
        yield f"drawn here by {told}, where the pipeline has the adapter all the way"
    how = sampling.how
    if how.negative is not None and splits:
        how = how.model_copy(update={"negative": None})
    if how.plain is None and how.scale == how.nearest and how == type(how)(scale=how.scale, interval=how.interval):
        low, high = how.interval
        yield f"guided here between t = {low:g} and {high:g} only, which the pipeline does all the way"
    elif how.plain is None:
        yield f"drawn here with {how.described()}, which the pipeline has not"
