"""What a launcher asks for is followed, or refused by name; no environment variable changes a run without a word."""

import pytest

from align import processes
from align.errors import UserError
from align.hooks.metrics import EXTRAS, PACKAGES, MetricsConfig
from align.training.trainer import TrainConfig

PLAIN = TrainConfig()


@pytest.mark.parametrize("variable", processes.PLUGINS)
def test_what_would_wrap_the_model_is_refused(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match=variable):
        processes.join(PLAIN)


@pytest.mark.parametrize("variable", processes.SIZES)
def test_processes_that_did_not_join_are_noticed(monkeypatch, variable):
    """`accelerate launch` for GPUs on a machine without one: each of the two would train and write the same folder."""
    for other in processes.SIZES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setattr(processes, "Accelerator", lambda **_: type("Alone", (), {"num_processes": 1}))
    assert processes.join(PLAIN).num_processes == 1
    monkeypatch.setenv(variable, "2")
    with pytest.raises(UserError, match=rf"2 processes were started \({variable}\), but 1 joined.*torchrun"):
        processes.join(PLAIN)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert processes.join(PLAIN).num_processes == 1, "torchrun's word counts within a larger job"


def test_the_recipe_decides_the_precision(monkeypatch):
    plain = {"mixed_precision": "no", "compiled": False}
    for asked in ("no", "bf16", "fp16", "fp8"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
        if asked == "no":
            processes.heed(**plain)
            processes.heed(mixed_precision="bf16", compiled=False)
            continue
        with pytest.raises(UserError, match=f"mixed_precision={asked}, and the recipe, which decides"):
            processes.heed(**plain)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    processes.heed(mixed_precision="bf16", compiled=False)


def test_every_command_that_joins_heeds_the_launcher(monkeypatch, tmp_path):
    """Training, noise optimisation (reno, best-of, redraw) and evaluation: the recipe decides in each."""
    from align.config import load_recipe
    from align.evaluation.plan import plan
    from align.evaluation.run import Session
    from align.noise.studio import Studio
    from align.run import prepare, train

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    evaluation = plan(["base"], recipe="reno/shapes", count=1)
    starts = [
        lambda: train("draft/shapes", output=str(tmp_path / "run")),
        lambda: prepare("diffusion_dpo/shapes", [f"output={tmp_path / 'run'}"]),
        lambda: Studio(load_recipe("reno/shapes", on_disk=False)),
        lambda: Session(evaluation, tmp_path / "evaluation", print),
    ]
    for start in starts:
        with pytest.raises(UserError, match="mixed_precision=bf16, and the recipe, which decides"):
            start()


def test_accumulation_and_compilation_are_the_recipes_too(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(UserError, match=r"gradient_accumulation_steps=4.*train.micro_batch_size"):
        processes.heed(mixed_precision="no", compiled=False)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    processes.heed(mixed_precision="no", compiled=True)
    with pytest.raises(UserError, match=r"dynamo_backend=inductor.*train.compile=true"):
        processes.heed(mixed_precision="no", compiled=False)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_tracker_that_is_not_installed_is_refused_with_what_to_install(monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda module, *_: None)
    ((key, text),) = MetricsConfig(trackers=(name,)).conflicts({})
    wanted = f'"diffalign[{name}]"' if name in EXTRAS else f'"{name}"'
    assert key == ".trackers.0" and f"Run pip install {wanted}" in text
    monkeypatch.setattr("importlib.util.find_spec", lambda module, *_: module)
    assert not list(MetricsConfig(trackers=(name,)).conflicts({}))


def test_the_trackers_named_are_accelerates():
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert PACKAGES.keys() == set(map(str, LOGGER_TYPE_TO_CLASS))
