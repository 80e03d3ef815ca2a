"""What is compared: a method is a recipe and changes to it. Those of preferences read the pairs that `align pairs` (or
their first run) has made."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import align


@dataclass(frozen=True)
class Method:
    """A recipe and changes to it."""

    recipe: str
    changes: tuple[str, ...] = ()


def asks(method: Method) -> tuple[str, ...]:
    """The rewards that its training asks: of its own images, or to order and label those that it is given."""
    recipe = align.load_recipe(method.recipe, method.changes)
    made = getattr(getattr(recipe.data, "make", None), "rewards", None) or {}
    return tuple(dict.fromkeys((*recipe.rewards, *made)))


def learnt(methods: Mapping[str, Method], names: Sequence[str]) -> str:
    """Lines on the rewards that these methods ask in training, in their order; with a word on those that know the
    truth."""
    by: dict[str, list[str]] = {}
    for name in names:
        by.setdefault(" + ".join(asks(methods[name])), []).append(name)
    told = "; ".join(f"{', '.join(asking)}: {rewards}" for rewards, asking in by.items())
    known = any(set(TRUTH) & set(asks(methods[name])) for name in names)
    more = " What asks judge, judge_graded or gold is taught by the truth that it is measured by." if known else ""
    return textwrap.fill(f"Rewards in training: {told}.{more}", 118)


TRUTH = ("judge", "judge_graded", "gold")
PICK = "rewards={pick: {name: clip, model: embedded:shapes-pick, form: logit}}"
CURVES = {
    "nft": Method("nft/shapes"),
    "awm": Method("awm/shapes"),
    "dgpo": Method("dgpo/shapes"),
    "grpo": Method("grpo/shapes"),
    "ddpo": Method("ddpo/shapes"),
    "draft": Method("draft/shapes"),
    "draft-4x": Method("draft/shapes", ("train.num_updates=400",)),
    "draft-4x-slow": Method("draft/shapes", ("train.num_updates=400", "optim.lr=1.5e-3")),
    "draft-1-4x": Method("draft/shapes", ("sampling.last_k=1", "train.num_updates=360")),
    "draft-1-16x": Method("draft/shapes", ("sampling.last_k=1", "train.num_updates=1440")),
    "draft-1-16x-slow": Method("draft/shapes", ("sampling.last_k=1", "train.num_updates=1440", "optim.lr=1.5e-3")),
}
"""Those whose learning is drawn: each as its recipe says."""
PREFERENCES = {
    "diffusion-dpo": Method("diffusion_dpo/shapes"),
    "inversion-dpo": Method("inversion_dpo/shapes", ("evaluate.sampling=null",)),
    "online-dpo": Method(
        "diffusion_dpo/shapes_online", ("rewards={gold: {}}", "data.temperature=0.15", "train.num_updates=100")
    ),
    "kto": Method("kto/shapes"),
    "dro": Method("dro/shapes"),
    "npo": Method("npo/shapes"),
    "spo": Method("spo/shapes"),
    "tailorpo": Method("tailorpo/shapes"),
    "d3po": Method("d3po/shapes"),
}
"""Those that learn from pairs and thumbs, likewise; online-dpo has the judge of diffusion-dpo's pairs, and passes the
network about as often as making those pairs and 200 updates do."""

CALLS = 720
"""Network calls an image and an update's place: a forward 1, a backward 2; the budget of GRADIENTS."""
EACH = {
    "draft-1": 6 + 2,
    "draft-lv": 6 + 2 + 2 * 3,
    "drtune": 5.5 + 3 * 2,
    "flowbp-sparse": 6 + 3 * 3,
    "leapalign": 6 + 2 * 3,
    "alignprop": 6 + 3 * 2,
    "refl": 5 + 2,
    "adjusted-dft": 6 + 6 * 2,
}
"""What one image costs in one update: six steps, then those that carry the gradient; drtune ends after 5 or 6,
alignprop has 1 to 5 that do, refl ends after 4, 5 or 6, of adjusted-dft all do."""
GRADIENTS = {
    "draft-1": Method("draft/shapes", ("sampling.last_k=1", f"train.num_updates={round(CALLS / EACH['draft-1'])}")),
    "draft-lv": Method("draft/shapes_lv"),
    "drtune": Method("drtune/shapes"),
    "flowbp-sparse": Method("flowbp/shapes"),
    "leapalign": Method("leapalign/shapes"),
    "alignprop": Method("alignprop/shapes"),
    "refl": Method("refl/shapes"),
    "adjusted-dft": Method("adjusted_dft/shapes"),
}
"""Those that send a reward's gradient to network calls, with as many calls each; the rewards, rate
and batch are those of draft/shapes."""
EQUAL = {
    "adjoint_matching": Method(
        "adjoint_matching/shapes", ("objective.guided=nothing", "sampling.guidance_scale=1", "train.num_updates=60")
    ),
    "draft": Method(
        "draft/shapes_clip",
        (
            "sampling={num_steps: 10, eta: 1.0, guidance_scale: 1, last_k: 5, memory: stored}",
            "optim.schedule=constant",
            "train.batch_size=16",
            "train.num_updates=60",
        ),
    ),
}
"""By one sampler and one reward."""
COLOURED = ", ".join(f"a {colour} circle" for colour in ("red", "yellow", "green", "cyan", "blue", "purple"))
AIMS = {
    "fairness": Method("fairness/shapes"),
    "fairness-colours": Method(
        "fairness/shapes",
        (
            f"objective.attributes=[{COLOURED}]",
            "objective.uncertainty=0.7",
            "objective.preserve=2",
            "rewards={clip: {model: embedded:shapes-clip, form: logit}}",
            "train.num_updates=40",
        ),
    ),
    "unlearn": Method("unlearn/shapes"),
    "srpo": Method("srpo/shapes"),
}
"""Those whose aim is their own, by their recipes."""


@dataclass(frozen=True)
class Student:
    """A student of few steps, and the one whose adapter it begins from."""

    method: Method
    start: str = ""


ONCE = "data.count=null"
"""Each caption of a set once, as these were measured; the recipe holds equal shares of the skills."""
RL_OF_STUDENTS = (
    ONCE,
    "rewards={judge: {}}",
    "sampling={num_steps: 4, spacing: trailing, guidance_scale: 1}",
    "train.num_updates=60",
)
EVERY_LAYER = (
    r".*(to_[qkv]|to_out\.0|proj_in|proj_out|net\.0\.proj|net\.2|"
    r"time_emb_proj|linear_[12]|conv(1|2|_in|_out|_shortcut)?)"
)
"""As recipes/tdm/shapes_ode.yaml has them."""
STUDENTS = {
    "tdm-4": Student(Method("tdm/shapes")),
    "ode-4": Student(Method("ode_regression/shapes")),
    "tdm-4-ode": Student(Method("tdm/shapes_ode"), "ode-4"),
    "tdm-4-lcm": Student(Method("tdm/shapes", ("sampling.step_rule=lcm", "sampling.spacing=null"))),
    "tdm-2": Student(Method("tdm/shapes", ("sampling.num_steps=2",))),
    "tdm-4-flow": Student(Method("tdm/shapes_flow")),
    "tdm_r1": Student(Method("tdm_r1/shapes"), "tdm-4"),
    "tdm_r1-ode": Student(Method("tdm_r1/shapes_ode"), "tdm-4-ode"),
    "nft": Student(Method("nft/shapes", (*RL_OF_STUDENTS, "adapter.rank=16", "optim.lr=1e-3")), "tdm-4"),
    "nft-ode": Student(
        Method("nft/shapes", (*RL_OF_STUDENTS, "adapter.rank=32", f"adapter.targets={EVERY_LAYER}", "optim.lr=5e-4")),
        "tdm-4-ode",
    ),
    "diff-instruct": Student(Method("diff_instruct/shapes", ("hooks.guard=false",)), "tdm-2"),
}
OVEROPTIMISED = "draft/shapes_overoptimised"
SLOWER, LONGER = "optim.lr=3e-3", "train.num_updates=320"
"""Half of the recipe's rate, at all of which a run on clip comes apart; twice its updates."""
STEADY = ("optim.lr=1.5e-3", "train.num_updates=640")
"""A quarter of its rate, for four times its updates."""
HACKED = {
    "pick": Method(OVEROPTIMISED),
    "pick-slower": Method(OVEROPTIMISED, (SLOWER,)),
    "clip": Method(
        OVEROPTIMISED,
        (
            SLOWER,
            LONGER,
            "rewards={clip: {model: embedded:shapes-clip}}",
            "hooks.guard.rewards={pick: {name: clip, model: embedded:shapes-pick, form: logit}}",
        ),
    ),
    "eye": Method(OVEROPTIMISED, (SLOWER, LONGER, "rewards={eye: {}}")),
    "pick-steady": Method(OVEROPTIMISED, STEADY),
    "eye-steady": Method(OVEROPTIMISED, (*STEADY, "rewards={eye: {}}")),
    "pick-nft": Method(
        "nft/shapes",
        (
            ONCE,
            PICK,
            "hooks={samples: {prompts: shapes:select, num_images: 8, every: 50}, panel: {prompts: shapes:select, "
            "num_prompts: 96, rewards: {gold: {}, judge: {}}, every: 20}, guard: {prompts: shapes:select, "
            "num_prompts: 32, rewards: {clip: {model: embedded:shapes-clip}}, every: 20}}",
        ),
    ),
}
"""Rewards that are climbed too far or for long; the guard holds another one out."""
