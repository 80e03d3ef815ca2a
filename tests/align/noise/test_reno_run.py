"""Runs of noise optimisation and best-of on a tiny Stable Diffusion: files, cost, resuming, ends, the table."""

import json
import os
import signal

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from align.commands.app import app
from align.commands.noise import RECIPE, assembled, seconds, weighted
from align.commands.sample import STREAM
from align.config import load_recipe
from align.errors import UserError
from align.figures.statistics import paired
from align.noise import optimise as reno
from align.noise import table as reno_table
from align.noise.best_of import best_of
from align.noise.files import read
from align.noise.recipe import recipe_of
from align.noise.run import Session, drawn_again
from align.noise.studio import Row, Studio
from align.run import train
from samplers import Rng, generator

PROMPTS = ["a red cat", "two blue dogs"]


@pytest.fixture(scope="module")
def model(tiny_sd_factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_sd_factory(timestep_spacing="trailing").save_pretrained(folder)
    return str(folder)


def recipe(model, **changes):
    tree = {
        "model": {"name": "sd", "checkpoint": model},
        "objective": {"name": "reno"},
        "data": {"name": "prompts", "prompts": PROMPTS},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 1, "guidance_scale": 1.0, "checkpoint_steps": False},
        "optim": {"algorithm": "sgd", "lr": 5.0, "weight_decay": 0.0},
        "train": {"num_updates": 4, "batch_size": 4, "max_grad_norm": 0.1},
    }
    return load_recipe(tree, changes)


@pytest.fixture(scope="module")
def studio(model):
    return Studio(recipe(model))


def session(model, studio, output, **changes):
    changed = recipe(model, **changes)
    studio.recipe, studio.seed = changed, changed.train.seed
    return Session(changed, output, print, studio)


def test_a_run_leaves_pictures_that_know_where_they_come_from(model, studio, tmp_path):
    run = session(model, studio, tmp_path, **{"objective.num_seeds": 2})
    outcomes = list(run.run(frames=True))
    assert [(o.index, o.prompt) for o in outcomes] == [(i, PROMPTS[i // 2]) for i in range(4)]
    assert read(tmp_path) == outcomes
    for outcome in outcomes:
        assert outcome.best["total"] > outcome.start["total"] and outcome.iteration > 0
        path = tmp_path / outcome.file
        with Image.open(path) as image:
            assert json.loads(image.text["diffalign"]) == json.loads(outcome.model_dump_json())
            assert image.text["prompt"] == outcome.prompt and image.size == (32, 32)
            levels = torch.tensor(list(image.tobytes()), dtype=torch.float32).view(-1, 3) / 255
        luma = float((levels * torch.tensor([0.299, 0.587, 0.114])).sum(1).mean())
        assert outcome.best["brightness"] == pytest.approx(luma, abs=1e-5)  # the score is that of the saved image
        with Image.open(path.with_suffix(".gif")) as path_of:
            assert 1 < path_of.n_frames <= 4
        assert path.with_name(f"{path.stem}-path.png").is_file()
    assert outcomes[0].file == "0000-a-red-cat.png" and outcomes[0].rewards == {"brightness": 1.0}


def test_the_first_noise_is_trainings_and_not_that_of_align_sample(model, studio):
    rows = [Row(0, "a"), Row(5, "b")]
    like = torch.empty(2, 4, 8, 8)
    assert torch.equal(studio.noise(rows), Rng(studio.seed, [0, 5]).normal("x_T", like))
    of_sample = Rng(generator(studio.seed, STREAM, 0).initial_seed(), [0, 5]).normal("x_T", like)
    assert not (studio.noise(rows) == of_sample).any()
    assert not (studio.noise(rows) == studio.noise(rows, 1)).any()


def test_the_noise_draws_the_very_image_again(model, studio, tmp_path):
    outcome = next(session(model, studio, tmp_path, **{"train.seed": 7}).run())
    noise = (tmp_path / outcome.file).with_suffix(".safetensors")
    again = drawn_again(noise, None, {}, None)
    with Image.open(tmp_path / outcome.file) as first, Image.open(again) as second:
        assert first.tobytes() == second.tobytes()
    with Image.open(tmp_path / f"{noise.stem}-start.png") as start, Image.open(again) as second:
        assert start.tobytes() != second.tobytes()
    more_steps = drawn_again(noise, None, {}, tmp_path / "more.png", ["sampling.num_steps=4"])
    with Image.open(more_steps) as other, Image.open(again) as second:
        assert other.tobytes() != second.tobytes()
    with pytest.raises(UserError, match=r"takes \(4, 12, 12\)"):
        drawn_again(noise, None, {}, None, ["sampling.image_size=[48, 48]"])
    with pytest.raises(UserError, match="is no noise"):
        drawn_again(tmp_path / outcome.file, None, {}, None)


def test_what_is_there_is_not_made_again(model, studio, tmp_path, monkeypatch, capsys):
    first = list(session(model, studio, tmp_path).run())
    (tmp_path / first[0].file).unlink()
    made = []
    original = reno.optimise
    monkeypatch.setattr("align.noise.run.optimise", lambda s, rows, **k: made.append(rows) or original(s, rows, **k))
    second = list(session(model, studio, tmp_path).run())
    assert made == [[Row(0, PROMPTS[0])]]
    assert {o.index: o.best for o in second} == {o.index: pytest.approx(o.best) for o in first}
    capsys.readouterr()
    list(session(model, studio, tmp_path, **{"optim.lr": 4.0}).run())
    assert len(made[1]) == 2  # other settings, other images
    assert "2 pictures of other settings made anew, in their place" in capsys.readouterr().out
    list(session(model, studio, tmp_path, **{"optim.lr": 4.0}).run(again=True))
    assert len(made) == 3


def test_the_best_of_a_number_is_not_the_best_of_a_time(model, studio, tmp_path):
    run = session(model, studio, tmp_path)
    for extent in ({"count": 2}, {"seconds": 1e-9}, {"count": 8}):  # a wave, the least that is drawn in a time, is 8
        made = list(run.run(method="best-of", **extent))
        assert {o.iterations for o in made} == {extent.get("count", 8)} and read(tmp_path) == made
        assert list(run.run(method="best-of", **extent)) == made, "the same again is there"
        assert len({o.settings for o in made}) == 1


def test_ctrl_c_keeps_the_best_so_far_and_the_next_run_goes_on(model, studio, tmp_path, monkeypatch):
    original = reno.Watch.after_update

    def interrupted(self, state):
        original(self, state)
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(reno.Watch, "after_update", interrupted)
    run = session(model, studio, tmp_path, **{"train.batch_size": 1})
    (outcome,) = list(run.run())
    assert run.interrupted == "SIGINT" and outcome.iterations == 2
    assert (tmp_path / outcome.file).is_file() and outcome.best["total"] >= outcome.start["total"]
    monkeypatch.setattr(reno.Watch, "after_update", original)
    outcomes = list(session(model, studio, tmp_path, **{"train.batch_size": 1}).run())
    assert [o.iterations for o in outcomes] == [4, 4]


def test_the_budget_and_dried_up_gain_end_early(model, studio):
    rows = [Row(0, PROMPTS[0])]
    session(model, studio, None, **{"objective.budget": 1e-6})
    done = reno.optimise(studio, rows, say=print)
    assert done.iterations == 1 and "budget" in done.stopped
    session(model, studio, None, **{"objective.min_gain": 1e6, "objective.patience": 2})
    done = reno.optimise(studio, rows, say=print)
    assert done.iterations == 3 and "gain" in done.stopped
    session(model, studio, None, **{"objective.min_gain": 1e-12, "objective.patience": 2})
    assert reno.optimise(studio, rows, say=print).stopped is None


def test_best_of_is_the_best_of_the_noises_it_says(model, studio):
    session(model, studio, None)
    rows = [Row(3, PROMPTS[0]), Row(9, PROMPTS[1])]
    found = best_of(studio, rows, count=20)  # two waves and a half
    totals = torch.stack([studio.candidates(rows, studio.noise(rows, k)).total for k in range(20)])
    torch.testing.assert_close(found.reward, totals.max(0).values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.first, totals[0], rtol=1e-5, atol=1e-6)
    for i, best in enumerate(totals.argmax(0).tolist()):
        assert torch.equal(found.x_T[i], studio.noise(rows, best)[i])
    assert found.candidates == 20 and found.cost.forward_equivalents(1) == 20 * 2 * 3
    short = best_of(studio, rows, seconds=1e-9)
    assert short.candidates == 8  # one wave is always drawn


def test_starts_are_the_best_of_random_ones(model, studio):
    session(model, studio, None, **{"objective.num_starts": 5, "train.num_updates": 1})
    rows = [Row(10 + i, PROMPTS[i % 2]) for i in range(4)]
    done = reno.optimise(studio, rows, say=print)
    found = best_of(studio, rows, count=5)
    assert torch.equal(done.noise.best, found.x_T) and not torch.equal(found.x_T, studio.noise(rows))
    # an iteration: network 1 + 2, decoder 4, reward 3; a start: 1 each
    assert done.cost.forward_equivalents(1) == 4 * (10 + 5 * 3)


def test_the_comparison_is_at_equal_cost_and_the_table_says_so(model, studio, tmp_path):
    outcomes = list(session(model, studio, tmp_path).run(compare=True))
    for outcome in outcomes:
        assert outcome.forward_equivalents == 4 * 10
        assert outcome.baselines["forwards"]["candidates"] == 13  # 40/3
        assert outcome.baselines["seconds"]["candidates"] >= 1
        assert outcome.baselines["forwards"]["total"] >= outcome.start["total"] - 1e-3
    text = reno_table.write(tmp_path, outcomes).read_text()
    assert "| total |" in text and "13 at the same forward-equivalents" in text
    means = {k: sum(o.best[k] for o in outcomes) / 2 for k in ("total",)}
    assert f"{means['total']:.4f} [" in text
    assert reno_table.write(tmp_path, list(session(model, studio, tmp_path / "other").run())) is None


def test_several_seeds_of_a_prompt_are_one_prompt_in_the_table(model, studio, tmp_path):
    first = next(iter(session(model, studio, tmp_path).run(compare=True)))
    gained = torch.arange(15.0).double() % 4 / 8 + torch.arange(5).repeat_interleave(3) / 4
    outcomes = [
        first.model_copy(
            update={
                "prompt": f"prompt {number // 3}",
                "best": first.best | {"total": first.start["total"] + float(more)},
            }
        )
        for number, more in enumerate(gained)
    ]
    found = reno_table.compared(outcomes)
    wanted = paired(gained.view(5, 3).mean(1))  # a prompt's images first
    assert next(row for row in found.tables[1] if row[0] == "total")[1] == str(wanted)
    assert "15 images of 5 prompts" in found.note and "intervals over prompts" in found.note


def test_a_judge_that_cannot_read_the_prompt_is_left_out(model, studio, tmp_path):
    read = ["a red circle", "two squares"]
    changes = {"evaluate.prompts": read, "evaluate.num_prompts": 2, "evaluate.num_pictures": 1}
    watched = recipe(model, **changes, **{"evaluate.rewards": {"judge": {}, "other": {"name": "brightness"}}})
    looked = Studio(watched)
    black = torch.zeros(3, 64, 64)
    assert looked.scores(Row(0, "no caption at all"), black).keys() == {"total", "brightness", "other"}
    assert looked.scores(Row(0, "a red circle"), black)["judge"] == 0


def test_the_command(model, tmp_path):
    settings = tmp_path / "mine.yaml"
    settings.write_text(recipe(model).yaml())
    out = tmp_path / "out"
    words = ["reno", "a red cat", "--recipe", str(settings), "--iterations", "2", "--seeds", "2", "-o", str(out)]
    done = CliRunner().invoke(app, [*words, "--reward", "brightness=-2", "--lr", "3"])
    assert done.exit_code == 0, done.output
    page = (out / "report.html").read_text()
    assert page.count("<figure") == 2 and page.count("data:image/png;base64,") == 4 and "data:image/gif" in page
    assert "no table" not in done.output
    assert "iteration 2/2" in done.output and "0000-a-red-cat.png  reward" in done.output
    first, second = read(out)
    assert first.rewards == {"brightness": -2.0} and first.best["total"] == pytest.approx(-2 * first.best["brightness"])
    assert (first.iterations, first.prompt, second.index) == (2, "a red cat", 1)
    best = max((first, second), key=lambda outcome: outcome.best["total"])
    assert f"best of 2 of 'a red cat': {out / best.file}  reward {best.best['total']:.3f}" in done.output
    with safe_open(out / "0001-a-red-cat.safetensors", framework="pt") as file:
        assert load_recipe(tmp_path_recipe(file.metadata()["recipe"], tmp_path)).optim.lr == 3.0
    done = CliRunner().invoke(app, ["redraw", str(out / "0001-a-red-cat.safetensors")])
    assert done.exit_code == 0 and "0001-a-red-cat-again.png" in done.output
    words = ["reno", "a red cat", "--recipe", str(settings), "--compare", "-o", str(tmp_path / "lone")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "no table: it compares two images or more" in done.output
    words = ["best-of", "a red cat", "--recipe", str(settings), "-n", "3", "-o", str(tmp_path / "best")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "best of 1" not in done.output
    assert read(tmp_path / "best")[0].method == "best-of"
    assert CliRunner().invoke(app, [*words, "-n", "4"]).exit_code == 0
    (line,) = read(tmp_path / "best")  # what was the best of 3 is not the best of 4, and its picture is replaced
    assert line.iterations == 4


def tmp_path_recipe(text, folder):
    path = folder / "read.yaml"
    path.write_text(text)
    return path


def test_seeds_are_the_recipes_unless_said():
    said = {"objective.num_seeds": None}
    assert assembled(None, None, ["a red star"], None, None, None, said, None).objective.num_seeds == 4
    said = {"objective.num_seeds": 2}
    assert assembled(None, None, ["a red star"], None, None, None, said, None).objective.num_seeds == 2


def test_settings_on_the_command_line():
    assert seconds("20s") == 20 and seconds("2m") == 120 and seconds("7") == 7 and seconds(None) is None
    for wrong in ("soon", "-3s", "0"):
        with pytest.raises(UserError, match=f"--budget {wrong}"):
            seconds(wrong)
    known = {"clip": {"name": "clip", "model": "x", "weight": 1.0}}
    assert weighted(["clip=0.5", "aesthetic"], known) == {
        "clip": {"name": "clip", "model": "x", "weight": 0.5},
        "aesthetic": {"weight": 1.0},
    }
    with pytest.raises(UserError, match="is no number"):
        weighted(["clip=much"], known)
    with pytest.raises(UserError, match="there is no prompt"):
        assembled(None, None, None, None, None, None, {}, None)
    with pytest.raises(UserError, match="given twice"):
        assembled(None, None, ["a"], "b.txt", None, None, {}, None)
    own = load_recipe(RECIPE).model.checkpoint
    assert recipe_of(own)[0] == RECIPE
    assert recipe_of("somebody/model") == ("reno/any", {"model.checkpoint": "somebody/model"})
    base = "PixArt-alpha/PixArt-XL-2-512x512"
    assert recipe_of(base) == ("reno/any", {"model.checkpoint": base}), "not its distilled network"
    bare = "PixArt-alpha/PixArt-Alpha-DMD-XL-2-512x512"  # a network without its pipeline
    chosen = assembled(None, bare, ["a red star"], None, None, None, {}, None).model
    assert (chosen.name, chosen.checkpoint, chosen.network) == ("pixart", base, bare)
    loaded = assembled(None, None, ["a red star"], None, None, None, {"optim.lr": None}, ["optim.momentum=0.5"])
    assert loaded.data.prompts == ["a red star"] and loaded.optim.momentum == 0.5
    assert loaded.optim.lr == load_recipe(RECIPE).optim.lr


def test_scores_that_tie_an_image_to_its_batch_are_refused(model):
    with pytest.raises(UserError, match=r"combine.normalise: is running"):
        recipe(model, **{"combine.normalise": "running"})
    recipe(model, **{"combine.normalise": "fixed", "combine.statistics": {"brightness": [0.5, 0.1]}})


def test_training_an_adapter_with_it_is_refused(model, tmp_path):
    with pytest.raises(UserError, match="Run align reno"):
        train(recipe(model, output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_a_record_is_not_believed_when_its_picture_was_replaced(model, studio, tmp_path):
    """Seed 0, then seed 1, then seed 0 again: the scores are those of the picture that is there."""
    first = list(session(model, studio, tmp_path).run())
    before = {o.file: (tmp_path / o.file).read_bytes() for o in first}
    list(session(model, studio, tmp_path, **{"train.seed": 1}).run())
    assert any((tmp_path / name).read_bytes() != data for name, data in before.items())
    again = list(session(model, studio, tmp_path).run())
    assert [o.best for o in again] == [o.best for o in first]
    for outcome in again:
        with Image.open(tmp_path / outcome.file) as image:
            assert json.loads(image.text["diffalign"])["seed"] == outcome.seed == 0
    assert len(read(tmp_path)) == len(again), "no line speaks of a picture that was replaced"


@pytest.mark.parametrize("name", ["noending", "x.xyz"])
def test_a_place_for_a_redrawn_image_is_tried_first(tmp_path, name):
    with pytest.raises(UserError, match="--output"):
        drawn_again(tmp_path / "none.safetensors", None, {}, tmp_path / name)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0", "x"])
def test_a_budget_is_a_time(text):
    with pytest.raises(UserError, match="is no time"):
        seconds(text)
