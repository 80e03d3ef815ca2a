"""The sampling block of a recipe: grid, step rule, guidance and gradient window.

Its config is checked without torch; the methods import what they build.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from align.errors import UserError
from align.registry import ComponentConfig
from align.sampling import problems, solver
from align.sampling.guidance import GuidanceConfig
from align.sampling.levers import LeversConfig, of_recipe
from align.sampling.problems import STOCHASTIC
from align.sampling.times import by_hand
from align.sampling.windows import policy

if TYPE_CHECKING:
    from align.models._base import DiffusionModel, TextEncoder
    from samplers import Denoiser, GradPolicy, Grid, Law, StepRule
    from samplers.guidance import CfgGrad, Judge

OF_GRADIENTS = ("window", "last_k", "min_k", "max_k", "normal_mean", "normal_std", "subset_k")
OF_GRADIENTS += ("detach_input", "memory")
"""The settings that no image depends on."""


class SamplingConfig(ComponentConfig):
    """How images are sampled, and which of the steps carry gradient."""

    num_steps: int = Field(default=50, ge=1)
    """Network evaluations along the grid; heun takes 2 num_steps - 1."""
    step_rule: Literal[
        "ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m", "lcm", "heavy_ball", "ghvb", "leapfrog"
    ] = "ddim"
    """The integrator; lcm with num_steps=1 is one-step generation. heavy_ball and ghvb are Adams-Bashforth steps with
    momentum, for few steps at large guidance; leapfrog is what memory=reversible takes."""
    order: int = Field(default=2, ge=1, le=5)
    """heavy_ball and ghvb: past predictions that a step extrapolates from. GHVB 1.8 is order 2 and beta 0.8."""
    beta: float = Field(default=0.8, gt=0, le=1)
    """heavy_ball and ghvb: share of the newest in the running average. 1 is none: Adams-Bashforth (PLMS)."""
    noise_law: Literal["ddim", "cps", "flow_sde", "dance_sde"] | None = None
    """Which noise a step takes, with ddim or an euler's grid (samplers/laws.py): ddim and cps leave none in the image,
    flow_sde and dance_sde are Flow-GRPO's and DanceGRPO's. Default: the step rule's own."""
    eta: float | None = Field(default=None, ge=0)
    """Share of fresh noise a step, in [0, 1], ddim and euler_ancestral only; or the noise law's level. Default: 0 for
    ddim, 1 for euler_ancestral; for a law 1 (ddim), 0.8 (cps), 0.7 (flow_sde), 0.3 (dance_sde), as published."""
    guidance_scale: float = Field(default=7.5, ge=0)
    """Classifier-free guidance w in out_u + w (out_c - out_u); 1 is no guidance, at half the cost."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Times t between which guidance acts; 1 is pure noise."""
    guidance: GuidanceConfig | None = None
    """More than one scale for all steps, in place of the two settings above, or beside them if it leaves them open."""
    negative_prompt: str = ""
    """What the unprompted branch is asked in place of nothing, in training and in pictures alike: images move away from
    it. Needs guidance."""
    spacing: Literal["leading", "trailing", "linspace", "karras"] | None = None
    """Which times the grid takes. Default: the model's own scheduler's."""
    timesteps: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """The steps' times by hand, as entries of the model's table (diffusers' `timesteps`), such as [800] for a one-step
    model that was distilled there. num_steps of them, falling; ddim and lcm only."""
    image_size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Height and width in pixels. Default: the size the network was trained at."""

    solver: str | None = None
    """Times and steps that were learned for this model and num_steps (align train solver/...): the file, or the run. In
    place of step_rule, spacing and timesteps."""
    roles: tuple[tuple[Literal["train", "reference"], float], ...] | None = None
    """Hand-over: [[train, 0.4], [reference, 0]] draws with the adapter until t = 0.4 and goes on with the base. Each
    role with the time until which it draws, the last 0; 1 is pure noise."""

    levers: LeversConfig | None = None
    """Cheaper steps before those that carry gradient, a smaller decoder; in training alone. Default: none of them."""
    window: Literal["last", "contiguous", "bernoulli", "normal", "subset", "full"] = "last"
    """Which steps carry gradient: samplers/grad.py has the laws."""
    last_k: int = Field(default=1, ge=0)
    """window=last: the number of last steps (DRaFT-K)."""
    min_k: int = Field(default=1, ge=1)
    """window=contiguous: the fewest last steps."""
    max_k: int | None = Field(default=None, ge=1)
    """window=contiguous: the most last steps. Default: num_steps."""
    normal_mean: float = 42.0
    """window=normal: mean of the first step with gradient (AlignProp: 42 of 50)."""
    normal_std: float = Field(default=5.0, ge=0)
    """window=normal: its standard deviation."""
    subset_k: int = Field(default=3, ge=1)
    """window=subset: the number of equally spaced steps (DRTune)."""
    detach_input: bool = False
    """Cut the gradient through each network call's input; the latent recursion stays (DRTune)."""
    memory: Literal["stored", "checkpointed", "reversible"] = "checkpointed"
    """What is kept of each network call that carries gradient: its activations, which is fastest; its input, and the
    call is made again in the backward pass; or nothing, with step_rule=leapfrog: the chain is run backwards."""

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_called(cls, said: Any) -> Any:
        """checkpoint_steps, in the recipes of earlier runs."""
        if isinstance(said, Mapping) and isinstance(said.get("checkpoint_steps"), bool) and "memory" not in said:
            said = {"memory": "checkpointed" if said["checkpoint_steps"] else "stored", **said}
            del said["checkpoint_steps"]
        return said

    @property
    def checkpoint_steps(self) -> bool:
        """Whether a network call is made again in the backward pass."""
        return self.memory != "stored"

    def of_images(self) -> dict[str, Any]:
        """The settings that images depend on, JSON-able: how a few-step student is drawn."""
        return self.model_dump(mode="json", exclude=set(OF_GRADIENTS))

    @property
    def num_calls(self) -> int:
        """Network calls of one rollout: what the gradient window counts."""
        return 2 * self.num_steps - 1 if self.step_rule == "heun" else self.num_steps

    @property
    def num_free(self) -> int:
        """Network calls of a rollout that never carry gradient; one at least where the window is drawn anew."""
        if self.window in ("last", "subset"):
            return self.num_calls - (self.last_k if self.window == "last" else self.subset_k)
        return int(self.window != "full")

    def call_of(self, step: int) -> int:
        """Number, from 0, of the network call that predicts from the state before `step`; heun takes two a step."""
        return 2 * step if self.step_rule == "heun" else step

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from problems.of_memory(self, recipe)
        yield from of_recipe(self, recipe)
        if self.solver is None:
            return
        try:
            steps = solver.read(self.solver).num_steps
        except UserError as error:
            yield ".solver", str(error).partition(": ")[2]
            return
        if steps != self.num_steps:
            yield ".num_steps", f"is {self.num_steps}, and the solver was learned for {steps}. Set it to {steps}."

    @model_validator(mode="before")
    @classmethod
    def _folded(cls, value: Any) -> Any:
        """The two short settings go into a block that leaves them open, so that a recipe's block can be added to."""
        block = value.get("guidance") if isinstance(value, dict) else None
        if not isinstance(block, dict):
            return value
        short = {inner: key for inner in ("scale", "interval") if (key := f"guidance_{inner}") in value}
        taken = {inner: key for inner, key in short.items() if inner not in block}
        rest = {key: inner for key, inner in value.items() if key not in taken.values()}
        return {**rest, "guidance": {**block, **{inner: value[key] for inner, key in taken.items()}}}

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> "SamplingConfig":
        """Every setting that is fine in itself but cannot work with the others, at its own key; the gradient's only
        where something is trained, which {"trains": False} denies. `levers.fast` is spelled out first."""
        if self.levers is not None:
            object.__setattr__(self, "levers", self.levers.spelled_out(self))
        trains = not isinstance(info.context, dict) or info.context.get("trains", True)
        found = [
            InitErrorDetails(
                type=PydanticCustomError("setting", "{text}", {"text": text}), loc=(key,), input=getattr(self, key)
            )
            for key, text in [*problems.of_rule(self), *(problems.of_window(self) if trains else ())]
        ]
        if self.guidance is not None:
            plain = self.step_rule in ("ddim", "euler") and self.noise_law is None and not self.eta
            found += [
                InitErrorDetails(
                    type=PydanticCustomError("setting", "{text}", {"text": text}),
                    loc=("guidance", key),
                    input=getattr(self.guidance, key),
                )
                for key, text in self.guidance.problems(self.num_calls, first_order=plain)
            ]
        if found:
            raise ValidationError.from_exception_data(type(self).__name__, found)
        return self

    def alone(self) -> Iterator[tuple[str, str]]:
        """What keeps single steps, away from their trajectory, from being guided: for `conflicts`."""
        if self.how.of_trajectory:
            yield (
                "sampling.guidance",
                "knows its calls by their place in a trajectory, and here steps are trained one by one. Use one scale "
                "or {t: w}, without skip, zero_init and plus_plus.",
            )

    @property
    def how(self) -> GuidanceConfig:
        """The guidance, whichever way it was said."""
        return self.guidance or GuidanceConfig(scale=self.guidance_scale, interval=self.guidance_interval)

    @property
    def num_rows(self) -> int:
        """Rows of network calls for one image, at most: two of a call that is guided in full."""
        return self.num_calls - min(self.how.zero_init, self.num_calls) + self.how.calls_in_full(self.num_calls)

    @property
    def stochastic(self) -> bool:
        """Whether steps have noise whose law is known, and so a density: what `law` needs."""
        if self.noise_law is not None:
            return self.eta is None or self.eta > 0
        return self.step_rule in STOCHASTIC and bool(self._eta())

    def law(self) -> "Law":
        """The noise of a step, as its standard deviation and the share that is kept (samplers/laws.py)."""
        from samplers import LAWS, LEVELS

        if self.noise_law is not None:
            return LAWS[self.noise_law](LEVELS[self.noise_law] if self.eta is None else self.eta)
        return LAWS["ddim"](self._eta())

    def _eta(self) -> float:
        own = 1.0 if self.step_rule == "euler_ancestral" else 0.0
        return own if self.eta is None else self.eta

    def step(self) -> "StepRule | type[StepRule]":
        """The step rule as `samplers.sample` takes it."""
        import samplers

        if self.solver is not None:
            return solver.read(self.solver).step()
        if self.noise_law is not None:
            return samplers.noisy(self.law())
        rules: dict[str, Any] = {
            "ddim": samplers.ddim,
            "euler": samplers.euler,
            "euler_ancestral": samplers.euler_ancestral,
            "heun": samplers.Heun,
            "dpmpp_2m": samplers.DPMpp2M,
            "lcm": samplers.lcm,
            "heavy_ball": samplers.HeavyBall.of(self.order, self.beta),
            "ghvb": samplers.GHVB.of(self.order, self.beta),
            "leapfrog": samplers.Leapfrog,
        }
        return rules[self.step_rule]

    def rule_eta(self) -> float | None:
        """The eta that `step()` is bound with; None where it takes none, or keeps its own default."""
        return self.eta if self.step_rule in STOCHASTIC and self.noise_law is None else None

    def grid(self, model: "DiffusionModel") -> "Grid":
        """The model's own times for this rule, spacing and image size, or the recipe's.

        Raises UserError for timesteps that the model's table has not, and for more steps than it has times.
        """
        if self.solver is not None:
            return solver.read(self.solver).grid(model)
        try:
            own = model.grids(self.num_steps, model.latent_shape(self.image_size), self.step_rule, self.spacing)
        except ValueError as error:
            raise UserError(f"sampling: {error}. Change num_steps, or spacing.") from None
        return own if self.timesteps is None else by_hand(self.timesteps, model.schedule, own)

    def grad_policy(self) -> "GradPolicy":
        """The gradient window, and what is kept of its calls."""
        return policy(self)

    def unprompted(self, text: "TextEncoder") -> Any:
        """One row: what the branch without the prompt is asked, the empty prompt or the negative one."""
        return text.negative(self.negative_prompt) if self.negative_prompt else text.encode([""])

    def guided(
        self, denoiser: "Denoiser", uncond: Any, grad: "CfgGrad" = "both", judge: "Judge | None" = None
    ) -> "Denoiser":
        """`denoiser` with this block's guidance; `uncond` is what `unprompted` gives, one row or one per sample; grad:
        what of the guided output carries gradient (`samplers.cfg`); judge: of dynamic guidance."""
        from samplers import ByTime, Prediction, guide

        if self.how.zero_init and denoiser.kind is not Prediction.FLOW:
            raise UserError("sampling.guidance.zero_init: only a flow's velocity can stand still. Remove it.")
        if self.roles is not None:
            denoiser = ByTime([(_role(denoiser, name), until) for name, until in self.roles])
        rescale = getattr(denoiser, "rescale", None)  # the family's, by way of its denoiser
        opposite = getattr(denoiser, "opposite", None)  # a role's
        negative = opposite(self.how.negative) if opposite else None
        how = self.how.build(self.num_calls)
        return guide(denoiser, uncond, how, rescale=rescale, grad=grad, negative=negative, judge=judge)


def _role(denoiser: Any, name: str) -> Any:
    """The denoiser that draws, or the base beside it."""
    return denoiser if name == "train" or not hasattr(denoiser, "beside") else denoiser.beside(name)
