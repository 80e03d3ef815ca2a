"""sampling.guidance: when the unconditional network is asked, and how two outputs become one."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from align.registry import ComponentConfig
from align.sampling.dynamic import DynamicConfig
from align.sampling.negative import NegativeConfig

if TYPE_CHECKING:
    from samplers import Guidance

OF_SKIP = {"gamma": "adaptive", "space": "adaptive", "fraction": "fraction", "every": "refresh"}
"""The settings of one way to skip, and that way."""
Scale = Annotated[float, Field(ge=0)]


class GuidanceConfig(ComponentConfig):
    """Classifier-free guidance, out_u + w (out_c - out_u), beyond one scale at every step (samplers/guidance.py has the
    papers). The same in training, pictures and evaluation."""

    scale: Scale | tuple[Scale, ...] | dict[Annotated[float, Field(gt=0, le=1)], Scale] = 7.5
    """w; one a network call, as a list; or {t: w}, each from its time down to the next, the first at 1. 1 is none."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times t between which guidance acts; 1 is pure noise."""
    skip: Literal["none", "adaptive", "fraction", "refresh"] = "none"
    """Which calls leave the unconditional network out. adaptive: each image's once the two outputs agree; fraction: all
    after a share of the steps; refresh: all but each every-th."""
    gamma: float = Field(default=0.99, ge=-1)
    """adaptive: the cosine of the two outputs from which they agree. Above 1 they never do."""
    space: Literal["x0", "v"] = "x0"
    """adaptive: where the cosine is taken. Not in the noise, whose cosine is near 1 from the first step."""
    fraction: float = Field(default=0.5, ge=0, le=1)
    """fraction: share of the steps that are guided in full, the first ones."""
    every: int = Field(default=2, ge=1)
    """refresh: how often the unconditional network is asked."""
    reuse: Literal["none", "delta", "delta2"] = "none"
    """fraction and refresh: what stands for out_c - out_u meanwhile. none: nothing, w is 1; delta: the last one;
    delta2: the last two carried on in a line."""
    rescale: float = Field(default=0.0, ge=0, le=1)
    """Share of the guided output that is given the standard deviation of out_c (0.7 in the paper)."""
    zero_star: bool = False
    """CFG-Zero*: shortens out_u to what of out_c lies along it."""
    zero_init: int = Field(default=0, ge=0)
    """CFG-Zero*: the first so many steps stand still; flow models only."""
    plus_plus: bool = False
    """CFG++: scale is its lambda in [0, 1], which depends on the number of steps (0.6 is w = 7 at 50, 1.8 at 10)."""

    negative: NegativeConfig | None = None
    """Adapters of the unprompted branch, where they are others than the prompted one's."""
    dynamic: DynamicConfig | None = None
    """Scales to choose from at each step by rewards, in place of scale."""

    @field_validator("scale")
    @classmethod
    def _from_one(cls, value: object) -> object:
        if isinstance(value, dict) and max(value, default=0) != 1:
            raise ValueError(f"{value} says nothing of t = 1, where sampling begins. Add 1.0: w.")
        return value

    @property
    def of_trajectory(self) -> bool:
        """Whether a call must know which of a trajectory's it is, so that single steps cannot be guided alone."""
        return (
            isinstance(self.scale, tuple)
            or self.skip != "none"
            or self.zero_init > 0
            or self.plus_plus
            or self.dynamic is not None
        )

    @property
    def plain(self) -> float | None:
        """The scale of plain guidance, as other programs take it; None where it is not."""
        same = {name: getattr(self, name) for name in type(self).model_fields if name not in ("scale", *OF_SKIP)}
        usual = {name: type(self).model_fields[name].default for name in same}
        return self.scale if isinstance(self.scale, float | int) and same == usual else None

    @property
    def nearest(self) -> float:
        """The one scale that says it best: what it begins with."""
        if isinstance(self.scale, tuple):
            return self.scale[0]
        return self.scale[1.0] if isinstance(self.scale, dict) else self.scale

    def calls_in_full(self, num_calls: int) -> int:
        """Network calls of `num_calls` that ask for both outputs, at most."""
        if self.scale == 1 and not self.plus_plus and self.dynamic is None:
            return 0
        left = num_calls - min(self.zero_init, num_calls)
        if isinstance(self.scale, tuple):
            left = sum(w != 1 for w in self.scale[self.zero_init : num_calls])
        if self.skip == "fraction":
            return min(left, max(0, self._first(num_calls) - self.zero_init))
        return -(-left // self.every) if self.skip == "refresh" else left

    def problems(self, num_calls: int, *, first_order: bool) -> Iterator[tuple[str, str]]:
        """(key, what is wrong) beside `num_calls` network calls; first_order: deterministic steps of that order."""
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            yield "interval", f"is {[low, high]}. Set it to two times t with 0 <= low <= high <= 1."
        if isinstance(self.scale, tuple) and len(self.scale) != num_calls:
            yield "scale", f"has {len(self.scale)} entries for {num_calls} network calls. Give one for each."
        for key, skip in OF_SKIP.items():
            if self.skip != skip and getattr(self, key) != type(self).model_fields[key].default:
                yield key, f"is {getattr(self, key)}, and skip is {self.skip}. Set skip: {skip}, or remove it."
        if self.reuse != "none" and self.skip not in ("fraction", "refresh"):
            yield "reuse", f"is {self.reuse}, and skip is {self.skip}. Set skip to fraction or refresh, or remove it."
        if self.plus_plus and not first_order:
            yield "plus_plus", "is for deterministic steps of first order. Use step_rule ddim at eta 0, or euler."
        if self.plus_plus and not (isinstance(self.scale, float | int) and self.scale <= 1):
            yield "scale", f"is {self.scale}, and CFG++'s lambda lies in [0, 1]. Set it to 0.6, or plus_plus: false."
        if self.dynamic is not None and self.scale != type(self).model_fields["scale"].default:
            yield "scale", f"is {self.scale}, and dynamic chooses the scales. Remove it."
        if self.dynamic is not None and (self.skip == "adaptive" or self.plus_plus):
            key = "plus_plus" if self.plus_plus else "skip"
            yield key, f"is {getattr(self, key)}, which goes by one scale. Remove it, or dynamic."
        if self.zero_init > num_calls:
            yield "zero_init", f"{self.zero_init} exceeds the {num_calls} network calls. Lower it."

    def build(self, num_calls: int) -> "Guidance":
        """As `samplers.guide` takes it."""
        from samplers import Guidance

        told = self.model_dump(exclude={"fraction", "negative", "dynamic"})
        if self.dynamic is not None:
            w = next((w for w in self.dynamic.scales if w != 1), 1.0)
            told |= {"scale": w, "candidates": self.dynamic.scales, "judge_every": self.dynamic.every}
        return Guidance(**told, first=self._first(num_calls))

    def _first(self, num_calls: int) -> int:
        return round(self.fraction * num_calls)

    def described(self) -> str:
        """For people: "guidance 7.5", and what more is set."""
        said = [
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.model_dump(exclude={"negative", "dynamic"}).items()
            if name != "scale" and value != type(self).model_fields[name].default
        ]
        said += [part.described() for part in (self.negative, self.dynamic) if part]
        scale = f"{self.scale:g}" if isinstance(self.scale, float | int) else str(self.scale)
        return f"guidance {', '.join([scale, *said])}"
