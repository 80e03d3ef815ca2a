"""Draws docs/img/grad_policy.svg: where gradients flow under four GradPolicies, read off real autograd graphs.

python scripts/figures/grad_policy.py
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from samplers import FlowSchedule, GradPolicy, Prediction, Trajectory, full, grids, last, sample

TARGET = Path(__file__).parents[2] / "docs" / "img" / "grad_policy.svg"
NUM_STEPS, GRID = 6, grids.flow(6)
LIVE, DEAD, INK = "#d9480f", "#ced4da", "#212529"
LEFT, STEP, ROW, TOP = 250, 92, 108, 66


def only(*steps: int) -> GradPolicy:
    """The steps that a random law happened to draw."""
    return GradPolicy(lambda num_steps, _: [step in steps for step in range(num_steps)], checkpoint=False)


POLICIES = [
    ("full()", "DRaFT", replace(full(), checkpoint=False)),
    ("last(2)", "DRaFT-K, K = 2", replace(last(2), checkpoint=False)),
    ("bernoulli()", "AlignProp, one draw", only(0, 3, 5)),
    ("subset(2), detach_input", "DRTune, one draw", replace(only(1, 4), detach_input=True)),
]


class Network:
    """out = theta_i x^2: a parameter of its own for every step, and its input as a node of its own."""

    schedule, kind = FlowSchedule(), Prediction.FLOW

    def __init__(self) -> None:
        self.theta = [torch.ones((), requires_grad=True) for _ in range(NUM_STEPS)]
        self.inputs: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor, cond: object) -> Tensor:
        x_in = x_t.view_as(x_t)
        self.inputs.append(x_in)
        return self.theta[len(self.inputs) - 1] * x_in.square()


def reached(x0: Tensor, tensors: list[Tensor]) -> list[bool]:
    """Which of the tensors the gradient of x0 reaches."""

    def one(tensor: Tensor) -> bool:
        return torch.autograd.grad(x0.sum(), tensor, allow_unused=True, retain_graph=True)[0] is not None

    return [tensor.requires_grad and one(tensor) for tensor in tensors]


def line(x1: float, y1: float, x2: float, y2: float, live: bool) -> str:
    style = f'stroke="{LIVE}" stroke-width="3"' if live else f'stroke="{DEAD}" stroke-width="2"'
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" {style}/>'


def text(x: float, y: float, words: str, size: int = 14, anchor: str = "middle", colour: str = INK) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def row(y: float, name: str, method: str, policy: GradPolicy) -> list[str]:
    network = Network()
    trajectory: Trajectory = sample(network, torch.ones(1, 1), GRID, None, grad=policy, keep="states")
    parameters = reached(trajectory.x0, network.theta)
    inputs = reached(trajectory.x0, network.inputs)
    latents = reached(trajectory.x0, list(trajectory.states))
    parts = [text(20, y - 22, name, 15, "start"), text(20, y - 2, method, 12, "start", "#868e96")]
    for i in range(NUM_STEPS):
        x, middle, end = LEFT + i * STEP, LEFT + (i + 0.5) * STEP, LEFT + (i + 1) * STEP
        parts += [line(x, y, end, y, latents[i]), line(x, y, middle - 14, y - 34, inputs[i])]
        parts += [line(middle + 14, y - 34, end, y, parameters[i])]
        if policy.detach_input and parameters[i]:
            parts.append(text(x + 15, y - 12, "&#215;", 17, colour=INK))
        fill, ink = (LIVE, "#fff") if parameters[i] else ("#f1f3f5", "#868e96")
        parts.append(f'<rect x="{middle - 19:g}" y="{y - 50:g}" width="38" height="28" rx="5" fill="{fill}"/>')
        parts.append(text(middle, y - 31, f"&#952;{chr(0x2080 + i)}", 14, colour=ink))
    for i, live in enumerate(latents):
        parts.append(f'<circle cx="{LEFT + i * STEP:g}" cy="{y:g}" r="6" fill="{LIVE if live else "#868e96"}"/>')
    return parts


def render() -> str:
    width, height = LEFT + NUM_STEPS * STEP + 40, TOP + ROW * len(POLICIES) + 38
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        text(LEFT, 26, "x_T", 14),
        text(LEFT + NUM_STEPS * STEP, 26, "x_0", 14),
        text(LEFT + NUM_STEPS * STEP / 2, 26, "values run to the right, gradients to the left", 13),
    ]
    for number, policy in enumerate(POLICIES):
        parts += row(TOP + ROW * number + 50, *policy)
    y = height - 14
    parts += [line(20, y - 5, 50, y - 5, True), text(58, y, "gradient flows", 12, "start")]
    parts += [line(165, y - 5, 195, y - 5, False), text(203, y, "values only", 12, "start")]
    legend = "box: a network call &#160;&#160; lower line: the latent recursion &#160;&#160; &#215;: input detached"
    parts.append(text(290, y, legend, 12, "start"))
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    TARGET.write_text(render())
