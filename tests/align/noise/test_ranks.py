"""ZO-RankSGD: its weights, a round on a toy, oracles, and whole runs on a tiny Stable Diffusion."""

import itertools
import math
import sys

import pytest
import torch
from typer.testing import CliRunner

from align.commands.app import app
from align.commands.noise import judge
from align.config import load_recipe
from align.errors import UserError
from align.noise.files import read
from align.noise.oracle import PROMPT, answer, by_program, by_rewards, program, shuffled
from align.noise.ranks import Search, retract, weights
from align.noise.run import Session
from align.objectives.reno import RanksConfig, RenoConfig

SHAPE = (2, 3, 4)


def edges(m: int, order: list[int]) -> torch.Tensor:
    """The mean of (e_i - e_j) over the pairs that the order decides."""
    unranked = [i for i in range(m) if i not in order]
    pairs = [*itertools.combinations(order, 2), *itertools.product(order, unranked)]
    total = torch.zeros(m, dtype=torch.float64)
    for better, worse in pairs:
        total[better] += 1
        total[worse] -= 1
    return total / len(pairs)


@pytest.mark.parametrize(
    ("m", "order"), [(6, [3, 1, 5, 0, 2, 4]), (6, [2, 4]), (6, [5]), (24, [7, 0, 1, 9, 3, 2]), (2, [1])]
)
def test_weights_are_the_mean_over_the_decided_pairs(m, order):
    found = weights(m, order)
    torch.testing.assert_close(found, edges(m, order))
    assert abs(float(found.sum())) < 1e-12


def test_a_shift_of_all_perturbations_changes_nothing():
    """It would with the released code's m - 2 r."""
    order, xi = [3, 1], torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    d = weights(6, order) @ xi
    torch.testing.assert_close(weights(6, order) @ (xi + 7), d)
    released = edges(6, order).clone()
    released[order] = torch.tensor([6.0, 4.0], dtype=torch.float64) / 9
    assert (released @ (xi + 7) - released @ xi).abs().max() > 1


@pytest.mark.parametrize(
    ("m", "k", "mean", "noise"),
    [(6, 6, 2 / math.sqrt(math.pi), 0.558), (3, 3, 1.128, None), (6, 2, 1.340, 0.786), (6, 1, 1.520, None)],
)
def test_along_a_linear_rewards_gradient_the_direction_has_a_known_mean(m, k, mean, noise):
    """E <d, a> = 1.128 for a full ranking of any m (Gini's mean difference), more where only the best are named."""
    along = torch.randn(20000, m, dtype=torch.float64, generator=torch.Generator().manual_seed(1))  # <xi_i, a>
    found = torch.stack([weights(m, row.argsort(descending=True)[:k].tolist()) @ row for row in along])
    assert float(found.mean()) == pytest.approx(mean, abs=4 * float(found.std()) / math.sqrt(20000) + 5e-4)
    if noise is not None:
        assert float(weights(m, list(range(k))).norm()) == pytest.approx(noise, abs=5e-4)


def start(seed: int = 0, **config) -> Search:
    """A search whose images are their states."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Search(RanksConfig(**config), x, lambda states: states)


def by_first_number(images):
    """Likes a large first number."""
    return images[:, 0, 0, 0].argsort(descending=True, stable=True).tolist()


def rounds(search: Search, oracle, count: int) -> list[bool]:
    generator = torch.Generator().manual_seed(5)
    return [
        search.round(oracle, torch.randn(6, *SHAPE, generator=generator, dtype=torch.float64)) for _ in range(count)
    ]


def test_the_search_climbs_and_never_falls_at_the_length_of_noise():
    search, reached = start(), []
    for _ in range(12):
        rounds(search, by_first_number, 1)
        reached.append(float(search.x[0, 0, 0]))
        assert float(search.x.norm()) == pytest.approx(math.sqrt(24)), "the first round is won already"
        assert torch.equal(search.image, search.x)
    assert reached == sorted(reached) and reached[-1] > reached[0] + 0.5


def test_a_round_costs_m_and_the_steps_of_the_line_search():
    search = start(num_lengths=4)
    rounds(search, by_first_number, 3)
    assert search.renders == 1 + 3 * (6 + 4)


def test_where_the_incumbent_wins_the_directions_are_averaged():
    search = start()
    before = search.x.clone()
    assert rounds(search, lambda images: list(range(len(images))), 2) == [False, False]
    assert torch.equal(search.x, before) and search.averaged == 2
    xi = torch.randn(12, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    w = weights(6, list(range(6))).view(-1, 1, 1, 1)
    torch.testing.assert_close(search.mean, ((w * xi[:6]).sum(0) + (w * xi[6:]).sum(0)) / 2)
    assert rounds(search, lambda images: list(range(len(images)))[::-1], 1) == [True]
    assert search.averaged == 0 and not search.mean.any()


def test_images_that_are_alike_leave_the_incumbent():
    search = start()
    before = search.x.clone()
    flat = by_rewards(_Flat(), "x")
    assert not any(rounds(search, flat, 2)) and torch.equal(search.x, before)


class _Flat:
    def __call__(self, images, prompts):
        return {"flat": torch.zeros(len(images))}

    def combine(self, terms):
        return terms["flat"]


def test_a_shuffled_display_gives_the_same_result():
    plain, mixed = start(), start()
    rounds(plain, by_first_number, 6)
    rounds(mixed, shuffled(by_first_number, torch.Generator().manual_seed(9)), 6)
    assert torch.equal(plain.x, mixed.x)
    assert shuffled(lambda images: [0], torch.Generator().manual_seed(1))(torch.zeros(50, 1, 1, 1)) != [0]


def test_the_best_two_may_be_all_that_is_said():
    search = start(num_ranked=2)
    rounds(search, lambda images: by_first_number(images)[:2], 8)
    assert float(search.x[0, 0, 0]) > float(start().x[0, 0, 0])
    torch.testing.assert_close(retract(2 * search.x[None])[0], search.x)


PROGRAM = """
import os, sys
from PIL import Image
means = [sum(Image.open(f).convert("L").tobytes()) for f in sys.argv[1:]]
open({log!r}, "a").write(os.environ["ALIGN_PROMPT"] + chr(10))
print(*sorted(range(len(means)), key=lambda i: -means[i]))
"""


def command(folder, text=PROGRAM) -> str:
    file = folder / "my judge.py"
    file.write_text(text.format(log=str(folder / "log")))
    return f"{sys.executable} '{file}'"


def test_a_program_orders_files(tmp_path):
    images = torch.tensor([0.2, 0.9, 0.0, 0.5]).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    assert by_program(command(tmp_path), "a red cat", timeout=60)(images) == [1, 3, 0, 2]
    assert (tmp_path / "log").read_text() == "a red cat\n" and PROMPT == "ALIGN_PROMPT"


FAULTS = {
    "one twice": ("print(0, 0)", "printed '0 0' for 4 images"),
    "too high": ("print(4)", "whole numbers from 0 to 3"),
    "words": ("print('the first')", "printed 'the first'"),
    "nothing": ("", "printed '' for 4 images"),
    "an error": ("raise SystemExit('no display')", "ended with code 1 and said: no display"),
    "no end": ("import time; time.sleep(60)", r"gave no answer in 0\.5 s"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_program_that_answers_wrongly_is_named(tmp_path, fault):
    text, said = FAULTS[fault]
    oracle = by_program(command(tmp_path, text), "x", timeout=0.5 if fault == "no end" else 60)
    with pytest.raises(UserError, match=said) as error:
        oracle(torch.zeros(4, 3, 4, 4))
    assert "\n" not in str(error.value)


def test_what_an_oracle_is_called():
    assert (judge("reward"), judge("reward:clip=2"), judge(f"{sys.executable} x.py")) == ("", "clip=2", None)
    for wrong in ("no-such-program-here x", "reward:", ""):
        with pytest.raises(UserError, match="there is no such program"):
            judge(wrong)
    with pytest.raises(UserError, match="Close its quotes"):
        program("python 'x")
    assert answer("2, 0\n1", 3, "x") == [2, 0, 1]


@pytest.fixture(scope="module")
def model(tiny_sd_factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_sd_factory(timestep_spacing="trailing").save_pretrained(folder)
    return str(folder)


def recipe(model, **changes):
    tree = {
        "model": {"name": "sd", "checkpoint": model},
        "objective": {"name": "reno", "ranks": {}},
        "data": {"name": "prompts", "prompts": ["a red cat", "two"]},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 1, "guidance_scale": 1.0},
        "train": {"num_updates": 3, "batch_size": 2},
    }
    return load_recipe(tree, changes)


def test_a_run_makes_images_better_by_ranks_alone_and_goes_on(model, tmp_path):
    session = Session(recipe(model), tmp_path, print)
    outcomes = list(session.run(frames=True))
    assert all(o.best["total"] > o.start["total"] - 1e-3 for o in outcomes)
    assert any(o.best["total"] > o.start["total"] for o in outcomes)
    assert {o.iterations for o in outcomes} == {3} and all(0 <= o.iteration <= 3 for o in outcomes)
    start = "the start, which 3 rounds did not better"
    assert all(o.told() == (f"found in round {o.iteration} of 3" if o.iteration else start) for o in outcomes)
    again = list(Session(recipe(model), tmp_path, print, session.studio).run())
    assert again == outcomes, "finished images are not made again"
    whole = list(Session(recipe(model, **{"train.batch_size": 1}), tmp_path / "one", print, session.studio).run())
    assert [o.best["total"] for o in whole] == [o.best["total"] for o in outcomes], "rows are apart"


def test_a_program_as_the_oracle_gives_what_the_same_reward_gives(model, tmp_path):
    """Brightness and the mean of grey order alike but for rounding; both climb."""
    changed = recipe(model, **{"objective.ranks": {"oracle": command(tmp_path)}, "train.num_updates": 2})
    outcomes = list(Session(changed, tmp_path / "out", print).run())
    assert sum(o.best["brightness"] - o.start["brightness"] for o in outcomes) > 0
    assert set((tmp_path / "log").read_text().splitlines()) == {"a red cat", "two"}


def test_a_reward_without_a_gradient_will_do():
    tree = recipe("embedded:shapes-turbo", **{"objective.ranks": {}, "data.prompts": ["a star"]}).dump()
    judged = load_recipe(tree | {"rewards": {"judge": {}}})
    assert not judged.objective.needs_gradient and RenoConfig().needs_gradient
    with pytest.raises(UserError, match="judge: is not differentiable"):
        load_recipe(tree | {"rewards": {"judge": {}}, "objective": {"name": "reno"}})


def test_the_command_runs_on_the_embedded_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "reno",
        "a red circle",
        "--oracle",
        "reward:judge_graded",
        "--iterations",
        "1",
        "--seeds",
        "1",
        "-o",
        "out",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    (outcome,) = read(tmp_path / "out")
    assert outcome.rewards == {"judge_graded": 1.0} and outcome.best["total"] > outcome.start["total"] - 1e-3
    for wrong in (["--oracle", "nobody-here"], ["--oracle", "reward:clip", "--reward", "pick"]):
        refused = CliRunner().invoke(app, ["reno", "a red circle", "-o", "none", *wrong])
        assert refused.exit_code == 2 and len(refused.output.strip().splitlines()) == 1
        assert not (tmp_path / "none").exists()
