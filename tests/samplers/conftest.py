"""The two schedules and the Gaussian toy that the tests of this room share; everything in float64."""

import pytest
import torch
from samplers_toy import SD_BETAS

from samplers import FlowSchedule, VPSchedule


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def vp() -> VPSchedule:
    return VPSchedule.from_config(SD_BETAS)


@pytest.fixture(params=["vp", "flow"])
def schedule(request, vp):
    return vp if request.param == "vp" else FlowSchedule()
