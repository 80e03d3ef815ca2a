"""sampling.levers.reuse: the steps before the window are run once for several updates."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import align
from align.data._repeated import Repeated
from align.data.prompts import Prompts, PromptsConfig
from align.errors import UserError
from align.objectives._base import Parts
from align.objectives.draft import Draft, DraftConfig
from align.policy.lora import FILE_NAME
from align.sampling import SamplingConfig, begin
from rewards import CombineConfig, Composite
from rewards.brightness import Brightness, BrightnessConfig
from samplers import FlowSchedule, GaussianDenoiser, Prediction, Rng, constant, grids

SHAPE = (3, 2, 2)


class Toy:
    """Pixels are latents; the network is the exact denoiser of one Gaussian, moved by theta."""

    schedule, kind, network = FlowSchedule(), Prediction.FLOW, torch.nn.Linear(1, 1).double()
    text = SimpleNamespace(encode=lambda prompts, grad=False: constant(torch.zeros(len(prompts), *SHAPE).double()))
    codec = SimpleNamespace(decode=lambda x0: x0)

    def latent_shape(self, image_size):
        return SHAPE

    def grids(self, num_steps, latent_shape, step_rule, spacing):
        return grids.flow(num_steps)


class At:
    """The policy at a theta."""

    def __init__(self, theta: float):
        self.theta = torch.tensor(theta, dtype=torch.float64, requires_grad=True)

    def role(self, name: str) -> GaussianDenoiser:
        return GaussianDenoiser(FlowSchedule(), Prediction.FLOW, 0.7, self.theta)


def draft(reuse: int, combine: CombineConfig | None = None) -> Draft:
    block = SamplingConfig(num_steps=4, guidance_scale=1.0, last_k=1, levers={"reuse": reuse})
    reward = Composite({"brightness": Brightness(BrightnessConfig())}, combine)
    return Draft(DraftConfig(), Parts(Toy(), block, reward, 5))


def batches(reuse: int = 1):
    source = Prompts(PromptsConfig(prompts=["a", "b", "c"]), batch_size=3, seed=0)
    return iter(Repeated(source, reuse))


def losses(objective: Draft, thetas: list[float], reuse: int, *, cut: int = 3) -> tuple[list[Tensor], list[dict]]:
    """One update a theta; those of a batch in a row."""
    found, said = [], []
    for theta, batch in zip(thetas, batches(reuse), strict=False):
        pieces = [batch[i : i + cut] for i in range(0, 3, cut)]
        objective.before_update(At(theta), pieces, lambda rows: rows)
        each = [objective(At(theta), piece) for piece in pieces]
        objective.after_update(lambda rows: rows)
        found.append(torch.cat([one.per_sample.detach() for one in each]))
        said.append({k: v for one in each for k, v in one.metrics.items()})
    return found, said


def begun(objective: Draft, batch) -> Tensor:
    rng = Rng(5, batch.indices, batch.step)
    return begin(objective.sampling, objective.model, At(0.4).role("train"), batch.prompts, rng)


def test_a_normalised_reward_does_not_shift_what_is_kept():
    objective = draft(2, CombineConfig(normalise="running"))
    found, _ = losses(objective, [0.1, 0.4, 0.7, 0.2], 2)  # its statistics need scores before the first update
    assert len(found) == 4 and objective.kept.updates == 4


def test_the_window_begins_where_the_first_update_of_a_batch_left_it():
    thetas = [0.1, 0.4, 0.7, 0.2]
    found, said = losses(draft(2), thetas, 2)
    fresh = [losses(draft(1), [theta] * 4, 2)[0][place] for place, theta in enumerate(thetas)]
    for place in (0, 2):  # they run their own steps
        torch.testing.assert_close(found[place], fresh[place], rtol=1e-6, atol=1e-7)
    assert not torch.allclose(found[1], fresh[1], rtol=1e-3)
    objective, batch = draft(1), next(batches())
    states = [
        begin(
            objective.sampling, objective.model, At(t).role("train"), batch.prompts, Rng(5, batch.indices, batch.step)
        )
        for t in (0.1, 0.4)
    ]
    last = objective.sampling.grid(objective.model).times[-2:]
    (a_t, s_t), (a_s, s_s) = FlowSchedule()(last[0]), FlowSchedule()(last[1])
    x0_hat = a_t * 0.49 / (a_t**2 * 0.49 + s_t**2) * states[0] + 0.4
    x0 = a_s * x0_hat + s_s * (states[0] - a_t * x0_hat) / s_t
    reward = Brightness(BrightnessConfig())(x0, batch.prompts)
    torch.testing.assert_close(found[1], -reward.detach().double(), rtol=1e-6, atol=1e-7)
    gap = (states[1][0] - states[0][0]).norm() / states[1][0].norm()
    torch.testing.assert_close(said[1]["stale"], gap.detach()[None])
    assert "stale" not in said[0] and "stale" in said[3]


def test_neither_the_cut_nor_a_restart_between_two_updates_of_a_batch_changes_anything():
    thetas = [0.1, 0.4, 0.7]
    whole, _ = losses(draft(3), thetas, 3)
    for one, other in zip(whole, losses(draft(3), thetas, 3, cut=2)[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    first, second = draft(3), draft(3)
    losses(first, thetas[:1], 3)
    second.load_state_dict(first.state_dict())
    batch = next(batches(3))
    second.before_update(At(0.4), [batch], lambda rows: rows)
    assert torch.equal(second(At(0.4), batch).per_sample, whole[1])


def test_how_stale_a_batch_is_is_said_of_its_first_row_alone():
    objective = draft(2)
    losses(objective, [0.1], 2)
    batch = next(batches(2))
    for share, said in ((batch[1:3], False), (batch[0:1], True)):  # as two processes have them
        objective.kept.before_update([share], lambda rows: begun(objective, rows), lambda rows: rows)
        assert ("stale" in objective.kept.said()) is said


def test_each_batch_comes_several_times_wherever_the_source_is_taken_up_again():
    def source() -> Repeated:
        return Repeated(Prompts(PromptsConfig(prompts=list("abcde")), batch_size=2, seed=1), 3)

    whole = [batch for batch, _ in zip(source(), range(8), strict=False)]
    assert whole[0] == whole[1] == whole[2] != whole[3] == whole[5] != whole[6]
    for place in range(8):
        first, again = source(), source()
        for _ in zip(range(place), first, strict=False):
            pass
        again.load_state_dict(first.state_dict())
        assert [batch for batch, _ in zip(again, range(8 - place), strict=False)] == whole[place:]


def test_a_run_that_goes_on_within_a_batch_ends_as_the_unbroken_one(tiny_sd_factory, tmp_path):
    tiny_sd_factory().save_pretrained(tmp_path / "model")
    recipe = {
        "model": {"name": "sd", "checkpoint": str(tmp_path / "model")},
        "objective": {"name": "draft"},
        "data": {"name": "prompts", "prompts": ["a red star", "two cats", "x"]},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 3, "guidance_scale": 2.0, "last_k": 1, "levers": {"reuse": 3}},
        "optim": {"lr": 1e-2},
        "train": {"num_updates": 5, "batch_size": 2, "checkpoint_every": 1, "keep_checkpoints": 9},
        "output": str(tmp_path / "whole"),
    }
    whole = align.train(recipe)
    assert [("stale" in record) for record in whole.metrics[-5:]] == [False, False, True, False, False]
    assert 0 < whole.metrics[-3]["stale"] < 0.5
    shutil.copytree(whole.output, tmp_path / "cut")
    for step in (2, 3, 4, 5):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step-{step:06d}")
    (tmp_path / "cut" / "summary.json").unlink()
    again = align.train(recipe | {"output": str(tmp_path / "cut")})
    told = [[json.dumps({k: v for k, v in r.items() if k != "seconds"}) for r in run.metrics] for run in (whole, again)]
    assert told[0] == told[1]
    assert (whole.output / "adapter" / FILE_NAME).read_bytes() == (again.output / "adapter" / FILE_NAME).read_bytes()


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        ("refl/shapes", {}, r"levers"),
        ("nft/shapes", {}, r"sampling.levers.reuse.*keeps a state for several updates, and nft cannot. Set it to 1"),
    ],
)
def test_where_nothing_can_be_kept_it_is_refused(recipe, changes, said):
    with pytest.raises(UserError, match=said):
        align.load_recipe(recipe, {"sampling.levers": {"reuse": 2}, **changes})
