"""The search for solvers: gradients reach every number, the file is taken by sampling, evolution needs no gradient."""

import json

import pytest
import torch
from pair_toys import policy_on

import align
from align.config import load_recipe
from align.data.prompts import Prompts, PromptsConfig
from align.errors import UserError
from align.objectives._base import Parts
from align.objectives._evolution import Evolution
from align.objectives.solver import SolverConfig, SolverSearch, between
from align.sampling import SamplingConfig, rollout
from samplers import Rng, mixture, times_of
from samplers.rollout import Trajectory

BLOCK = SamplingConfig(num_steps=3, guidance_scale=2.0)


@pytest.fixture(scope="module")
def policy(tiny_sd_factory):
    return policy_on(tiny_sd_factory(), b_scale=0)


def search(policy, **settings):
    config = SolverConfig(teacher_steps=8, population=4, **settings)
    return SolverSearch(config, Parts(policy.model, BLOCK, None, 0))


def batch():
    return next(iter(Prompts(PromptsConfig(prompts=["a star", "a cat"]), batch_size=2, seed=0)))


def test_a_step_along_the_gradient_lowers_the_loss_and_every_number_has_one(policy):
    objective = search(policy)
    parameters = objective.trainable.parameters()
    assert sum(p.numel() for p in parameters) == 3 + 3
    loss = objective(policy, batch()).per_sample.mean()
    grads = torch.autograd.grad(loss, parameters)
    assert all(g.abs().min() > 0 for g in grads)
    with torch.no_grad():
        size = sum(float(g.square().sum()) for g in grads)
        for p, g in zip(parameters, grads, strict=True):
            p -= 1e-2 * float(loss) / size * g
        assert objective(policy, batch()).per_sample.mean() < loss


def test_the_file_draws_the_path_that_was_learned(policy, tmp_path):
    objective = search(policy)
    with torch.no_grad():
        objective.numbers.gaps += torch.tensor([0.1, -0.2, 0.1])
        objective.numbers.below += 0.05
    for _ in range(2):  # a run that is taken up in its report writes it again
        objective.save(tmp_path / "adapter")
    block = SamplingConfig(num_steps=3, guidance_scale=2.0, solver=str(tmp_path))
    assert block.num_calls == 3 and list(block.conflicts({})) == []
    rng, role = Rng(0, [0, 1]), policy.role("reference")
    found = rollout(block, policy.model, role, ["a star", "a cat"], rng).x0
    numbers = objective.numbers
    times, matrix = times_of(numbers.gaps.detach(), *objective.ends), mixture(numbers.below.detach())
    with torch.no_grad():
        learned = objective._path(role, ["a star", "a cat"], rng, times, matrix).x0
    torch.testing.assert_close(found, learned)
    assert [key for key, _ in SamplingConfig(num_steps=4, solver=str(tmp_path)).conflicts({})] == [".num_steps"]
    with pytest.raises(ValueError, match="steps of its own"):
        SamplingConfig(num_steps=3, solver=str(tmp_path), step_rule="euler")
    said = json.loads((tmp_path / "adapter" / "solver.json").read_text())
    (tmp_path / "solver.json").write_text(json.dumps({**said, "prediction": "flow"}))
    with pytest.raises(UserError, match="predicts flow"):
        rollout(block, policy.model, role, ["a star"], Rng(0, [0]))
    (tmp_path / "solver.json").write_text(json.dumps({**said, "times": [0.1, 0.2]}))
    with pytest.raises(UserError, match="is no whole"):
        block.step()


def test_times_that_have_met_are_not_written(policy, tmp_path):
    objective = search(policy)
    with torch.no_grad():
        objective.numbers.gaps[1] = -1e4
    with pytest.raises(UserError, match="two of its times have met"):
        objective.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_place_between_two_states_is_on_their_line_and_has_times_gradient():
    states = tuple(torch.full((1, 2), v, dtype=torch.float64) for v in (4.0, 2.0, 1.0))
    path = Trajectory(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64), states, states[-1], ())
    t = torch.tensor(0.75, dtype=torch.float64, requires_grad=True)
    found = between(path, t)
    assert found.tolist() == [[3.0, 3.0]]
    assert torch.autograd.grad(found.sum(), t)[0] == 8.0
    for at, value in ((1.0, 4.0), (0.5, 2.0), (0.0, 1.0), (0.25, 1.5)):
        assert between(path, torch.tensor(at, dtype=torch.float64)).flatten()[0] == value


def test_evolution_finds_the_least_of_a_bowl_and_goes_on_where_it_was():
    best = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def losses(candidates):
        return (candidates - best).square().sum(1)

    one = Evolution(torch.zeros(3), 12, torch.ones(3), 0)
    for _ in range(60):
        found = one.select(losses(one.candidates()))
    assert losses(found[None]) < 1e-3
    two = Evolution(torch.zeros(3), 12, torch.ones(3), 0)
    for _ in range(30):
        two.select(losses(two.candidates()))
    three = Evolution(torch.zeros(3), 12, torch.ones(3), 0)
    three.load_state_dict(two.state_dict())
    assert torch.equal(three.select(losses(three.candidates())), two.select(losses(two.candidates())))
    broken = Evolution(torch.zeros(3), 4, torch.ones(3), 0)
    values = torch.full((8,), float("nan"))
    values[6] = 1.0  # the third trial
    assert torch.equal(broken.select(values), broken.parents[2])


def test_a_generation_is_an_update_without_gradient(policy):
    objective = search(policy, search="evolution")
    before = torch.cat([p.detach().clone() for p in objective.trainable.parameters()])
    loss = objective(policy, batch())
    grads = torch.autograd.grad(loss.per_sample.mean(), objective.trainable.parameters())
    assert all(not g.any() for g in grads)
    first = float(loss.per_sample.detach().mean())
    objective.after_update(lambda rows: rows)
    after = torch.cat([p.detach() for p in objective.trainable.parameters()])
    assert not torch.equal(before, after) or objective.evolution.generation == 1
    assert float(objective(policy, batch()).per_sample.mean()) <= first + 1e-6  # the same images again


def test_what_a_generation_says_of_its_loss_does_not_depend_on_the_cut(policy):
    """It is that of the numbers in place: the best of each piece would be another one for each."""
    objective, whole = search(policy, search="evolution"), batch()
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)  # what one row likes the other does not
    objective._losses_of = lambda role, rows, rng, long, gaps, below: (gaps.sum() * signs[list(rows.indices)], {})
    for _ in range(2):
        cut = [objective(policy, whole[i : i + 1]).per_sample for i in range(2)]
        objective._losses.clear()
        torch.testing.assert_close(torch.cat(cut), objective(policy, whole).per_sample)
        objective.after_update(lambda rows: rows)


def test_a_process_without_rows_takes_part_in_the_selection(policy):
    """It has nothing to add, and the others wait for it; afterwards all hold the same numbers."""
    one, none = search(policy, search="evolution"), search(policy, search="evolution")
    one(policy, batch())
    sent: list[torch.Tensor] = []
    one.after_update(lambda rows: sent.append(rows) or rows)
    none.after_update(lambda rows: torch.cat([*sent, rows]))
    for mine, theirs in zip(none.trainable.parameters(), one.trainable.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert none.evolution.generation == one.evolution.generation == 1
    assert torch.equal(none.evolution.trials, one.evolution.trials)


def test_a_run_by_evolution_comes_to_its_end(tmp_path):
    """Though none of its updates has a gradient."""
    changes = {"objective.search": "evolution", "objective.population": 4, "objective.teacher_steps": 6}
    changes |= {"sampling.num_steps": 2, "train.num_updates": 1, "train.batch_size": 2, "evaluate": None, "hooks": {}}
    run = align.train("solver/shapes", **changes, output=str(tmp_path))
    assert run.report.num_updates == 1 and (tmp_path / "adapter" / "solver.json").is_file()


def test_what_cannot_work_is_one_line(tmp_path):
    def refused(message, **changes):
        with pytest.raises(UserError, match=message):
            load_recipe("solver/shapes", {"output": str(tmp_path / "run"), **changes})

    refused("teacher_steps: is 50; set it well above", **{"sampling.num_steps": 50})
    refused("weight_decay: pulls", **{"optim.weight_decay": 0.01})
    refused("sampling: must be plain ddim", **{"sampling.step_rule": "dpmpp_2m"})
    refused("rewards: are missing", **{"objective.loss": "reward"})
    refused("solver: .*cannot be read", **{"sampling.solver": str(tmp_path / "none.json")})
    refused("roles: end at", **{"sampling.roles": [["train", 0.5]]})


def test_the_base_takes_over_where_it_is_told(policy):
    from align_toys import randomise

    randomise(policy.adapter, scale=0.2)

    def drawn(role="train", **said):
        block = SamplingConfig(num_steps=4, guidance_scale=2.0, **said)
        return rollout(block, policy.model, policy.role(role), ["a star"], Rng(0, [0])).x0

    own, base = drawn(), drawn("reference")
    assert torch.equal(drawn(roles=[["train", 0.0]]), own)
    assert torch.equal(drawn(roles=[["reference", 0.0]], last_k=2), base)
    mixed = drawn(roles=[["train", 0.5], ["reference", 0.0]], last_k=2)
    assert not torch.allclose(mixed, own) and not torch.allclose(mixed, base)
    randomise(policy.adapter, scale=0.0)
