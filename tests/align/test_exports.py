"""An objective that hands over another adapter than the run's own: it is what is judged, averaged and exported."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import align
from align.policy import adapter_file, cast
from align.training.checkpoint import Checkpoints

OBJECTIVE = '''
from align.objectives._base import Move
from align.objectives.draft import Draft
from align.policy.cast import Snapshot, Trained

class Both(Draft):
    """The run's own adapter makes images brighter, "shade" makes them darker, and {exports} is the result."""
    exports = "{exports}"
    adapters = {{"shade": Trained(optim={{"lr": 3e-2}}, adapter={{"rank": 4, "alpha": 2}}), "past": Snapshot(every=3)}}

    def moves(self, step):
        return [Move("default", self.own), Move("shade", self.darken)]

    def own(self, policy, batch, context=None):
        return super().__call__(policy, batch, context)

    def darken(self, policy, batch, context=None):
        loss = super().__call__(Shaded(policy), batch, context)
        return loss._replace(per_sample=-loss.per_sample)

class Shaded:
    """The policy with "shade" where "train" is asked for."""
    def __init__(self, policy):
        self.policy = policy

    def role(self, name):
        return self.policy.role("shade" if name == "train" else name)

    def __getattr__(self, name):
        return getattr(self.policy, name)
'''
PROMPTS = ["a red star", "two blue cats", "a square", "x above y"]


@pytest.fixture(scope="module")
def model(tiny_sd_factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    tiny_sd_factory().save_pretrained(folder)
    return str(folder)


def run(folder: Path, model: str, exports: str, **changes):
    module = folder / "both.py"
    module.write_text(OBJECTIVE.format(exports=exports))
    recipe = {
        "model": {"name": "sd", "checkpoint": model},
        "objective": {"name": f"{module}:Both"},
        "data": {"name": "prompts", "prompts": PROMPTS},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 2, "guidance_scale": 1.0, "last_k": 2},
        "adapter": {"rank": 2},
        "optim": {"lr": 2e-2},
        "train": {"num_updates": 4, "batch_size": 2, "checkpoint_every": 2},
        "evaluate": {"prompts": PROMPTS, "num_prompts": 4, "num_pictures": 1},
        "output": str(folder / "run"),
    }
    return align.train(recipe, changes)


def exported(done) -> dict[str, torch.Tensor]:
    return load_file(done.output / "adapter" / adapter_file.FILE_NAME)


def read(source: Path):
    return adapter_file.read(adapter_file.find(source))


def newest(done) -> Path:
    return Checkpoints(done.output / "checkpoints").newest()


def test_what_is_judged_and_exported_is_the_adapter_that_the_objective_names(tmp_path, model):
    done = run(tmp_path, model, "shade")
    assert done.report.scores["brightness"].difference.high < 0, "the run's own adapter makes images brighter"
    tensors = exported(done)
    assert {min(v.shape) for v in tensors.values()} == {4}
    state = load_file(newest(done) / "trainable-shade.safetensors")
    ups = [v for k, v in sorted(state.items()) if ".lora_B." in k]
    written = [v for k, v in sorted(tensors.items()) if ".lora_B." in k]
    assert all(torch.allclose(b, 0.5 * up) for b, up in zip(written, ups, strict=True))  # alpha / rank, multiplied in
    kept, own = read(newest(done)).tensors(), read(done.output).tensors()
    assert kept.keys() == own.keys() and all(torch.allclose(kept[name], own[name], atol=1e-7) for name in own)


def test_the_moving_average_and_the_guard_are_of_what_is_exported(tmp_path, model):
    guard = {"prompts": PROMPTS, "num_prompts": 4, "num_seeds": 1, "every": 2, "rewards": {"jpeg": {}}, "sweep": [0.5]}
    done = run(tmp_path, model, "shade", **{"train.ema": 0.5, "hooks.guard": {**guard, "drift": 1, "patience": None}})
    step = newest(done)
    shadow = load_file(step / "ema.safetensors")
    assert {min(v.shape) for v in shadow.values() if v.dim() > 1} == {4}
    swept = done.report.findings["guard"]
    recorded = {record["step"]: record["guard/jpeg"] for record in done.metrics if "guard/jpeg" in record}
    assert recorded.keys() == {0, 2, 4} and len(set(recorded.values())) == 3
    chosen = swept["best_update"]
    assert chosen > 0, "seed and rate are such that the guard takes an adapter"
    own, kept = (read(folder).tensors() for folder in (done.output, step.with_name(f"step-{chosen:06d}")))
    assert all(torch.allclose(own[name], kept[name], atol=1e-7) for name in kept), "the average of what is exported"


def test_a_snapshot_can_be_the_result(tmp_path, model):
    done = run(tmp_path, model, "past")
    own = read(done.output).tensors()
    step = newest(done)
    assert json.loads((step / "meta.json").read_text())["result"]["part"] == "adapter-past"
    past = load_file(step / "adapter-past.safetensors")
    now = load_file(step / "trainable.safetensors")
    assert not torch.equal(*(next(v for k, v in sorted(s.items()) if ".lora_B." in k) for s in (past, now)))
    for name, value in read(step).tensors().items():
        assert torch.equal(value, own[name])
    assert done.report.scores["brightness"].difference.low > 0


def test_a_frozen_adapter_is_no_result():
    objective = type("Wants", (), {"adapters": {}, "roles": {}, "exports": "style"})()
    policy = type("Policy", (), {"roles": {"train": {}}, "adapters": {}, "define": lambda *_: None})()
    known = cast.Cast(frozen={"style": None})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cast, "Cast", lambda: known)
        with pytest.raises(ValueError, match="nothing new in it"):
            cast.gather(policy, objective)
