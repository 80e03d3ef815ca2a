"""Evaluations on a tiny Stable Diffusion: nothing for nothing, the same numbers however they are made, every arm."""

import csv
import json
import os
import signal

import pytest
import torch
from evaluate_toys import PROMPTS, evaluated, make_runs, planned

from align.config import load_recipe
from align.errors import UserError
from align.evaluation.draw import Easel
from align.evaluation.results import EVALUATION, SCORES, SUMMARY, read
from align.evaluation.run import Session
from align.interrupt import Interrupted
from align.noise.stamps import stamps
from align.policy.painter import Painter
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.registry import MODELS, REWARDS, build
from rewards import Composite


@pytest.fixture(scope="module")
def runs(tiny_sd_factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_runs(tiny_sd_factory(), folder)
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """(arm, first prompt) of every chunk that is drawn."""
    made, original = [], Easel.draw

    def draw(self, arm, chunk, noises):
        made.append((arm.label, chunk.start))
        return original(self, arm, chunk, noises)

    monkeypatch.setattr(Easel, "draw", draw)
    return made


def files(folder):
    return {name: (folder / name).read_text() for name in (EVALUATION, SCORES, SUMMARY)}


def test_no_strength_is_no_gain(runs, tmp_path):
    found = evaluated(runs, tmp_path, "RUNS/one", strengths=[0, 1])
    nothing, whole = found.arms
    assert (nothing.label, whole.label) == ("one x 0", "one x 1")
    for gain in (*nothing.scores.values(), nothing.diversity):
        assert (gain.difference.mean, gain.difference.low, gain.difference.high) == (0.0, 0.0, 0.0)
        assert (gain.win_rate, gain.wins.low, gain.wins.high) == (0.5, 0.5, 0.5)
    for gain in nothing.categories["odd"].values():
        assert (gain.difference.mean, gain.difference.low, gain.p) == (0.0, None, None), "of two prompts"
    assert (nothing.change.mean, nothing.change.high, nothing.drift) == (0.0, 0.0, 0.0)
    assert all(gain.difference.mean != 0 for gain in whole.scores.values())
    assert whole.change.mean > 0.001 and whole.drift > 0


def test_it_is_the_report_of_the_run(runs, tmp_path):
    """One image a prompt: the scores that a training's own report gives these prompts, before and after."""
    recipe = load_recipe(runs / "one", on_disk=False)
    model = build(MODELS, recipe.model)
    config = recipe.adapter.model_copy(update={"init": str(runs / "one" / "adapter")})
    adapter = Adapter(config, model.network, list(model.lora_targets), seed=0)
    session = Session(planned(runs, "RUNS/one", num_images=1), tmp_path, print)
    painter = Painter(Policy(model, adapter), recipe.sampling, session.accelerator, seed=3, batch_size=2)
    judge = Composite({label: build(REWARDS, c) for label, c in session.plan.rewards.items()})
    found = session.run()
    rows = list(csv.DictReader((tmp_path / SCORES).open()))
    for arm, role in (("base", "reference"), ("one x 1", "train")):
        wanted, _ = painter.score(role, PROMPTS, judge, stream="report")
        for label, values in wanted.items():
            ours = torch.tensor([float(row[label]) for row in rows if row["arm"] == arm])
            torch.testing.assert_close(ours, values, rtol=0, atol=1e-5)
    assert found.trained_on == ["brightness"] and list(found.baseline.scores) == ["brightness", "colourfulness"]


def test_an_image_depends_on_nothing_but_its_prompt_seed_and_number(runs, tmp_path):
    evaluated(runs, tmp_path / "more", "RUNS/one", num_images=2)
    evaluated(runs, tmp_path / "fewer", "RUNS/one", num_images=1, count=3)
    evaluated(runs, tmp_path / "other", "RUNS/one", num_images=1, seed=4)
    more, fewer, other = (
        {(row["arm"], row["prompt"], row["image"]): row["brightness"] for row in csv.DictReader((f / SCORES).open())}
        for f in (tmp_path / "more", tmp_path / "fewer", tmp_path / "other")
    )
    assert len(more) == 2 * 5 * 2 and len(fewer) == 2 * 3
    first = ("one x 1", PROMPTS[0], "0")
    assert float(fewer[first]) == pytest.approx(float(more[first]), abs=1e-4)
    assert more[first] != more["one x 1", PROMPTS[0], "1"] and more[first] != other[first]


def test_interrupted_and_gone_on_with_it_is_the_same(runs, tmp_path, drawn):
    evaluated(runs, tmp_path / "whole", "RUNS/one")
    assert drawn == [(arm, start) for arm in ("base", "one x 1") for start in (0, 2, 4)]
    drawn.clear()

    def stop(arm, images):
        if len(drawn) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="SIGINT"):
        Session(planned(runs, "RUNS/one"), tmp_path / "parts", print).run(stop)
    assert len(drawn) == 4 and not (tmp_path / "parts" / EVALUATION).exists()
    evaluated(runs, tmp_path / "parts", "RUNS/one")
    assert len(drawn) == 6, "only what was missing"
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    evaluated(runs, tmp_path / "parts", "RUNS/one")
    assert len(drawn) == 6, "and nothing when nothing is"


def test_only_what_changed_is_made_again(runs, tmp_path, drawn):
    evaluated(runs, tmp_path / "a", "RUNS/one", rewards=["brightness"])
    assert len(drawn) == 6
    evaluated(runs, tmp_path / "a", "RUNS/one", rewards=["brightness", "sharpness"])
    assert len(drawn) == 6, "another judge looks at the images that are there"
    later = files(tmp_path / "a")
    evaluated(runs, tmp_path / "b", "RUNS/one", rewards=["brightness", "sharpness"])
    assert files(tmp_path / "b") == later
    drawn.clear()
    evaluated(runs, tmp_path / "a", "RUNS/one", "RUNS/two", rewards=["brightness"])
    assert {arm for arm, _ in drawn} == {"two x 1"}
    drawn.clear()
    (tmp_path / "a" / "images" / "base" / "0002-1.png").unlink()
    evaluated(runs, tmp_path / "a", "RUNS/one", rewards=["brightness"])
    assert drawn == [("base", 2)]
    drawn.clear()
    evaluated(runs, tmp_path / "a", "RUNS/one", rewards=["brightness"], changes=["sampling.num_steps=3"])
    assert len(drawn) == 6, "another sampler, other images"


def test_other_weights_under_the_same_name_are_seen(runs, tmp_path, monkeypatch):
    model = str(runs / "model")
    before = stamps({"name": "sd", "checkpoint": model, "dtype": {"vae": "auto"}})
    names = [name for name, *_ in before[0]]
    assert "unet/diffusion_pytorch_model.safetensors" in names and "scheduler/scheduler_config.json" in names
    weights = runs / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    os.utime(weights, ns=(0, 0))
    assert stamps({"checkpoint": model}) != before
    embedded = stamps({"checkpoint": "embedded:shapes-clip"})
    assert "model.safetensors" in [name for name, *_ in embedded[0]]
    assert stamps({"name": "clip", "model": "somebody/clip", "weight": 1.0}) == []
    assert stamps({"question": 60 * "Is it so? "}) == [], "no system knows a file by so long a name"
    code = tmp_path / "mine.py"
    code.write_text("def warmth(images, prompts): ...")
    assert stamps({"function": f"{code}:warmth"})[0][0][0] == "mine.py"
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "few.safetensors").write_bytes(b"1")
    for told in (f"{tmp_path}/lora", f"{tmp_path}/lora:few.safetensors"):
        assert stamps({"base_adapter": told})[0][0][:2] == ["few.safetensors", 1]
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "adapter" / "solver.json").write_text("{}")
    assert stamps({"solver": str(tmp_path / "run")})[0][0][:2] == ["adapter/solver.json", 2]
    monkeypatch.chdir(tmp_path)
    assert stamps({"name": "lora"}) == [], "the name of a component is no folder"


def test_a_mixture_and_its_parts(runs, tmp_path):
    found = evaluated(runs, tmp_path, "RUNS/one", "RUNS/two", mix=[0, 1], num_images=1)
    assert [arm.label for arm in found.arms] == [
        "one x 0 + two x 0",
        "one x 0 + two x 1",
        "one x 1 + two x 0",
        "one x 1 + two x 1",
    ]
    alone = evaluated(runs, tmp_path / "alone", "RUNS/one", "RUNS/two", num_images=1)
    none, two, one, both = (arm.scores["brightness"] for arm in found.arms)
    assert none.difference.mean == 0
    assert one == alone.arms[0].scores["brightness"] and two == alone.arms[1].scores["brightness"]
    assert both.after.mean not in (one.after.mean, two.after.mean)


def test_against_another_arm_signs_turn(runs, tmp_path):
    forth = evaluated(runs, tmp_path, "RUNS/two", against=f"{runs}/one", num_images=1).arms[0]
    back = evaluated(runs, tmp_path, "RUNS/one", against=f"{runs}/two", num_images=1).arms[0]
    for label, gain in forth.scores.items():
        assert gain.difference.mean == pytest.approx(-back.scores[label].difference.mean)
        assert gain.win_rate == pytest.approx(1 - back.scores[label].win_rate)
    assert forth.change.mean == pytest.approx(back.change.mean)


def test_the_base_alone_and_its_tables(runs, tmp_path):
    found = evaluated(runs, tmp_path, "base", recipe=str(runs / "one"))
    assert not found.arms and found.categories == {"even": 3, "odd": 2}
    rows = list(csv.DictReader((tmp_path / SCORES).open()))
    for category, count in (("even", 3), ("odd", 2)):
        values = [float(row["brightness"]) for row in rows if row["category"] == category]
        assert len(values) == 2 * count
        assert found.baseline.categories[category]["brightness"].mean == pytest.approx(sum(values) / len(values))
    summary = list(csv.DictReader((tmp_path / SUMMARY).open()))
    assert [(r["category"], r["score"], r["prompts"]) for r in summary][:2] == [
        ("all", "brightness", "5"),
        ("all", "colourfulness", "5"),
    ]
    assert read((tmp_path / EVALUATION).read_text()) == found


def test_noise_of_ones_choice(runs, tmp_path):
    options = {"recipe": str(runs / "one"), "num_images": 1, "count": 2}
    found = evaluated(runs, tmp_path, "best-of:1", "best-of:6", "reno:2", **options, changes=["optim.lr=1"])
    one, six, reno = found.arms
    assert one.label == "best of 1" and one.scores["brightness"].difference.mean == 0.0, "candidate 0 is the baseline's"
    assert six.scores["brightness"].difference.mean > 0 and six.scores["brightness"].difference.low is None
    assert reno.label == "ReNO, 2 iterations" and reno.scores["brightness"].difference.mean > 0
    assert six.drift is None and reno.change.mean > 0
    values = json.loads((tmp_path / EVALUATION).read_text())["arms"]
    assert [arm["noise"] for arm in values] == ["best-of", "best-of", "reno"]


REWARD = """
from typing import Literal
from rewards import Reward, RewardConfig

class LightConfig(RewardConfig):
    name: Literal["light"] = "light"

class Light(Reward):
    Config = LightConfig
    def forward(self, images, prompts):
        return images.mean((1, 2, 3))
"""


def test_noise_chosen_by_code_that_has_changed_is_chosen_anew(runs, tmp_path, drawn):
    code, options = tmp_path / "mine.py", {"recipe": str(runs / "one"), "num_images": 1, "count": 2}
    options["changes"] = [f'rewards={{light: {{name: "{code}:Light"}}}}']
    code.write_text(REWARD)
    for times in (1, 1, 2):
        if times == 2:
            os.utime(code, ns=(0, 0))
        evaluated(runs, tmp_path / "out", "best-of:6", rewards=["brightness"], **options)
        assert drawn == [("base", 0)] + [("best of 6", 0)] * times


def test_what_a_judge_cannot_read_is_said_before_a_picture_is_drawn(runs, tmp_path):
    said = r"^--prompts .*prompts\.csv: reward judge cannot score .*'a red cat'.*\(5 of 5 prompts"
    with pytest.raises(UserError, match=said):
        evaluated(runs, tmp_path / "new", "base", recipe=str(runs / "one"), rewards=["judge"])
    assert not (tmp_path / "new").exists()


def test_a_judge_that_fails_half_way_leaves_no_scores_of_other_pictures(runs, tmp_path, monkeypatch):
    """Seed 3, then seed 4 whose judge fails after its pictures are drawn, then seed 3 again."""
    first = evaluated(runs, tmp_path, "RUNS/one", seed=3)

    def failing(self, configs, combine=None):
        raise ValueError("the judge is gone")

    with monkeypatch.context() as patch:
        patch.setattr("align.evaluation.draw.Built.__call__", failing)
        with pytest.raises(ValueError, match="the judge is gone"):
            evaluated(runs, tmp_path, "RUNS/one", seed=4)
    again = evaluated(runs, tmp_path, "RUNS/one", seed=3)
    assert again.baseline.scores == first.baseline.scores
    fresh = evaluated(runs, tmp_path / "fresh", "RUNS/one", seed=3)
    for file in (tmp_path / "fresh" / "images").rglob("*.png"):
        assert (tmp_path / "images" / file.relative_to(tmp_path / "fresh" / "images")).read_bytes() == file.read_bytes()
    assert fresh.baseline.scores == first.baseline.scores


def test_fewer_prompts_leave_no_pictures_of_more(runs, tmp_path, drawn):
    evaluated(runs, tmp_path, "RUNS/one")
    evaluated(runs, tmp_path, "RUNS/one", count=2, num_images=1)
    names = {path.name for path in (tmp_path / "images").rglob("*.png")}
    assert names == {"0000-0.png", "0001-0.png"}


def test_names_that_differ_in_lost_letters_are_two_arms(runs, tmp_path):
    import shutil

    for name in ("my run", "my-run", "b+c", "Größe @1"):
        shutil.copytree(runs / "one", tmp_path / name)
    systems = [str(tmp_path / name) for name in ("my run", "my-run", "b+c@0.5", "Größe @1@0.5")]
    systems.append(f"{tmp_path / 'b+c'}@0.5+{tmp_path / 'my run'}@0.25")
    made = planned(runs, *systems)
    slugs = [arm.slug for arm in made.cast.arms]
    assert len(set(slugs)) == 5 and all(slug.isascii() for slug in slugs)
    assert [list(arm.adapters.values()) for arm in made.cast.arms] == [[1.0], [1.0], [0.5], [0.5], [0.5, 0.25]]
    for wrong in ("@nan", "@inf", "@x"):
        with pytest.raises(UserError, match="is no strength"):
            planned(runs, f"RUNS/one{wrong}")
