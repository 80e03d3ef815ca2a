"""The mathematics of diffusion sampling, differentiable; imports nothing but torch.

from samplers import FlowSchedule, GaussianDenoiser, Prediction, constant, grids, last, sample
data = GaussianDenoiser(FlowSchedule(), Prediction.FLOW, std=0.5)
x0 = sample(data, torch.randn(4, 3), grids.flow(20), constant(torch.zeros(4, 3)), grad=last(1)).x0
"""

from samplers import grids
from samplers.by_time import ByTime
from samplers.ddim import ddim
from samplers.denoiser import Cond, Denoiser, TensorCond, denoise
from samplers.dpmpp import DPMpp2M
from samplers.euler import euler
from samplers.euler_ancestral import euler_ancestral
from samplers.gaussian import GaussianDenoiser, constant
from samplers.grad import NO_GRAD, GradPolicy, bernoulli, contiguous, full, last, normal, subset
from samplers.grids import Grid
from samplers.guidance import CfgGrad, Guidance, cfg, guide
from samplers.heun import Heun
from samplers.laws import LAWS, LEVELS, Law, cps_law, dance_sde_law, ddim_law, flow_sde_law, flow_time, noisy
from samplers.lcm import lcm
from samplers.leapfrog import Leapfrog
from samplers.learned import Learned, mixture, times_of
from samplers.momentum import GHVB, HeavyBall
from samplers.noise import Rng, generator, noise
from samplers.prediction import Prediction, row, split, target
from samplers.rollout import Trajectory, bind, call_with_graph, invert, sample, sensitivity
from samplers.schedule import (
    FlowSchedule,
    Schedule,
    VPSchedule,
    add_noise,
    broadcast,
    dynamic_shift,
    shift,
    zero_terminal_snr,
)
from samplers.transition import StepRule, Transition, guard_log_ratio
from samplers.windows import Window, Windowed, densities

__all__ = [
    "GHVB",
    "LAWS",
    "LEVELS",
    "NO_GRAD",
    "ByTime",
    "CfgGrad",
    "Cond",
    "DPMpp2M",
    "Denoiser",
    "FlowSchedule",
    "GaussianDenoiser",
    "GradPolicy",
    "Grid",
    "Guidance",
    "HeavyBall",
    "Heun",
    "Law",
    "Leapfrog",
    "Learned",
    "Prediction",
    "Rng",
    "Schedule",
    "StepRule",
    "TensorCond",
    "Trajectory",
    "Transition",
    "VPSchedule",
    "Window",
    "Windowed",
    "add_noise",
    "bernoulli",
    "bind",
    "broadcast",
    "call_with_graph",
    "cfg",
    "constant",
    "contiguous",
    "cps_law",
    "dance_sde_law",
    "ddim",
    "ddim_law",
    "denoise",
    "densities",
    "dynamic_shift",
    "euler",
    "euler_ancestral",
    "flow_sde_law",
    "flow_time",
    "full",
    "generator",
    "grids",
    "guard_log_ratio",
    "guide",
    "invert",
    "last",
    "lcm",
    "mixture",
    "noise",
    "noisy",
    "normal",
    "row",
    "sample",
    "sensitivity",
    "shift",
    "split",
    "subset",
    "target",
    "times_of",
    "zero_terminal_snr",
]
