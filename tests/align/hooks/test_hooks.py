"""Panel, drift and samples on a tiny model: what they measure, and that they see the average where there is one."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from align.hooks._base import Hook, State, Surroundings, running
from align.hooks.drift import Drift, DriftConfig
from align.hooks.panel import Panel, PanelConfig
from align.hooks.samples import Samples, SamplesConfig
from align.models.sd import SDConfig, StableDiffusion
from align.policy.lora import AdapterConfig
from align.policy.painter import Painter
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.sampling import SamplingConfig
from rewards import Composite
from rewards.brightness import Brightness, BrightnessConfig

PROMPTS = ["a red star", "two cats"]


@pytest.fixture(scope="module")
def painter(tiny_sd_factory):
    model = StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory())
    adapter = Adapter(AdapterConfig(rank=2), model.network, list(model.lora_targets), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    sampling = SamplingConfig(num_steps=4, guidance_scale=2.0)
    return Painter(Policy(model, adapter), sampling, Accelerator(cpu=True), seed=3)


@pytest.fixture
def around(painter, tmp_path):
    def composite(configs):
        return Composite({label: Brightness(BrightnessConfig()) for label in configs})

    adapter = painter.policy.adapter
    return Surroundings(Path(tmp_path), painter.accelerator, adapter, painter, composite, {}, seed=3)


def test_drift_is_zero_without_the_adapter_and_grows_with_it(around):
    hook, values = Drift(DriftConfig(prompts=PROMPTS, num_times=3, every=2), around), []
    for strength in (0.0, 0.5, 1.0):
        state = State(num_updates=4, step=2)
        with around.trainable.scaled(strength):
            hook.after_update(state)
        values.append(state.metrics["drift"])
    assert values[0] == 0 < values[1] < values[2]
    hook.after_update(odd := State(num_updates=4, step=3))
    assert odd.metrics == {}


def test_drift_is_that_of_unguided_outputs_on_the_references_states(around):
    from align.sampling import rollout
    from samplers import Rng, generator

    hook = Drift(DriftConfig(prompts=PROMPTS, num_times=1, every=1), around)
    hook.after_update(state := State(num_updates=1, step=1))
    policy, painter = around.painter.policy, around.painter
    cond = policy.model.text.encode(PROMPTS)
    rng = Rng(generator(3, "drift", 0).initial_seed(), range(2))
    path = rollout(painter.sampling, policy.model, policy.role("reference"), PROMPTS, rng, keep="states")
    x, t = path.states[2], path.times[2]  # the middle one of 4 steps
    with torch.no_grad():
        gap = policy.role("train")(x, t, cond) - policy.role("reference")(x, t, cond)
    assert state.metrics["drift"] == pytest.approx(float(gap.square().mean()), rel=1e-5)


def test_the_panel_and_its_choice_are_of_the_average(around):
    """The "average" here is the base: the adapter switched off."""
    config = PanelConfig(prompts=PROMPTS, rewards={"brightness": {}}, best="brightness", every=1)
    plain, averaged = State(num_updates=3, step=1), State(num_updates=3, step=1, average=around.trainable.disabled)
    for state in (plain, averaged):
        Panel(config, around).after_update(state)
    assert plain.metrics != averaged.metrics
    scores, _ = around.painter.score("reference", PROMPTS, around.build_rewards(config.rewards), stream="panel")
    assert averaged.metrics["panel/brightness"] == pytest.approx(float(scores["brightness"].mean()), rel=1e-6)


def test_the_best_is_kept_over_a_stop(around):
    config = PanelConfig(prompts=PROMPTS, rewards={"brightness": {}}, best="brightness", every=1)
    first = Panel(config, around)
    first.after_update(state := State(num_updates=3, step=1))
    assert state.chosen is not None and state.chosen.step == 1
    second = Panel(config, around)
    second.load_state_dict(first.state_dict())
    with running([second], resumed := State(num_updates=3, step=2)):
        pass
    assert resumed.chosen is not None and resumed.chosen.step == 1
    assert all(torch.equal(resumed.chosen.tensors[name], value) for name, value in state.chosen.tensors.items())
    assert "panel/brightness" not in resumed.metrics  # only a fresh run measures before its first update


def test_samples_are_drawn_before_training_every_so_often_and_at_the_end(around):
    config = SamplesConfig(prompts=PROMPTS, num_images=2, every=2, columns=1)
    with running([hook := Samples(config, around)], state := State(num_updates=3)):
        for state.step in (1, 2, 3):
            hook.after_update(state)
    files = sorted((around.output / "samples").iterdir())
    assert [file.name for file in files] == ["step-000000.png", "step-000002.png", "step-000003.png"]
    pictures = [Image.open(file).convert("RGB").crop((0, 28, 200, 150)) for file in files]
    assert pictures[0].tobytes() == pictures[1].tobytes()  # the same seeds: only training changes a picture


def test_hooks_are_finished_however_the_run_ends():
    ended = []

    class Watch(Hook):
        def finish(self, state):
            ended.append(True)

    with pytest.raises(ZeroDivisionError), running([Watch(), Watch()], State(num_updates=1)):
        _ = 1 / 0
    assert ended == [True, True]


def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(monkeypatch):
    import importlib.util

    from align.hooks.metrics import MetricsConfig

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ((key, text),) = MetricsConfig(trackers=("wandb",)).conflicts({})
    assert key == ".trackers.0" and "which is not installed" in text and "diffalign[wandb]" in text
    assert list(MetricsConfig(trackers=("accelerate.tracking:GeneralTracker",)).conflicts({})) == []


class Gallery:
    """A tracker that keeps what it is handed."""

    requires_logging_directory = False
    seen: ClassVar[list] = []
    fails = False

    def __init__(self, project):
        self.numbers = []

    def start(self):
        Gallery.seen = []

    def store_init_configuration(self, values):
        pass

    def log(self, values, step):
        Gallery.seen.append((step, "numbers"))

    def log_images(self, values, step):
        if Gallery.fails:
            raise OSError("no room for pictures")
        Gallery.seen += [(step, name, array.shape[0], str(array.dtype)) for name, array in values.items()]

    def finish(self):
        pass


@pytest.mark.parametrize("fails", [False, True])
def test_samples_go_to_the_trackers_at_their_updates(around, fails, monkeypatch, capsys):
    from align.hooks.metrics import Metrics, MetricsConfig

    monkeypatch.setattr(Gallery, "fails", fails)
    hooks = [
        Samples(SamplesConfig(prompts=PROMPTS, num_images=1, every=2, columns=1), around),
        Metrics(MetricsConfig(trackers=(f"{__name__}:Gallery",)), around),
    ]
    with running(hooks, state := State(num_updates=2)):
        for state.step in (1, 2):
            for hook in hooks:
                hook.after_update(state)
    pictures = [] if fails else [(0, "samples", 1, "uint8"), (2, "samples", 1, "uint8")]
    assert [one for one in Gallery.seen if len(one) > 2] == pictures
    assert (1, "numbers") in Gallery.seen and (2, "numbers") in Gallery.seen  # whatever became of the pictures
    assert ("gets no pictures, the numbers go on: OSError" in capsys.readouterr().out) is fails
