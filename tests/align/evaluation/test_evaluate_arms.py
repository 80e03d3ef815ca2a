"""What a command line names: arms, strengths, mixtures, the recipe behind them, and what is refused."""

import shutil

import pytest
import yaml

from align.errors import UserError
from align.evaluation.arms import cast, numbers
from align.evaluation.plan import plan
from align.policy.lora import FILE_NAME


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Runs a and b, and another a; files that no adapter is read from."""
    monkeypatch.chdir(tmp_path)
    for run, model in (("a", "embedded:shapes-sd"), ("b", "embedded:shapes-sd"), ("old/a", "embedded:shapes-turbo")):
        (tmp_path / run / "adapter").mkdir(parents=True)
        (tmp_path / run / "adapter" / FILE_NAME).write_bytes(b"")
        (tmp_path / run / "recipe.yaml").write_text(
            f"model: {{name: sd, checkpoint: '{model}'}}\nobjective: draft\ndata: {{name: prompts, prompts: [x]}}\n"
            "rewards: {brightness: {}}\nsampling: {num_steps: 4}\n"
        )
    return tmp_path


def labels(*systems, **options):
    return [arm.label for arm in cast(systems, **options).arms]


def test_arms(folders):
    assert labels("a") == ["a x 1"]
    assert labels("a@0.5", "b@-0.25", "a") == ["a x 0.5", "b x -0.25", "a x 1"]
    assert labels("a@0.5+b@0.5") == ["a x 0.5 + b x 0.5"]
    assert labels("best-of:8", "reno:20", "base") == ["best of 8", "ReNO, 20 iterations"]
    assert labels("somebody/adapter@0.5") == ["somebody/adapter x 0.5"]
    assert labels("a", "a/adapter", f"a/adapter/{FILE_NAME}") == ["a x 1"], "one adapter, by any name"
    assert labels("a", "old/a", "b") == ["a x 1", "old/a x 1", "b x 1"], "two called a"


def test_a_plus_within_a_folders_name_is_no_mixture(folders):
    for name in ("b+c", "b+c+d"):
        shutil.copytree(folders / "b", folders / name)
    assert labels("b+c@0.5") == ["b+c x 0.5"] and labels("b+c") == ["b+c x 1"]
    assert labels("b+c+d@0.5+a") == ["b+c+d x 0.5 + a x 1"]


def test_sweeps(folders):
    assert labels("a", "b@2", strengths=[0, 0.5]) == ["a x 0", "a x 0.5", "b x 0", "b x 1"]
    assert labels("a", "best-of:2", strengths=[1]) == ["a x 1", "best of 2"]
    assert labels("a", "b", mix=[0, 1]) == ["a x 0 + b x 0", "a x 0 + b x 1", "a x 1 + b x 0", "a x 1 + b x 1"]
    assert numbers("0, 0.5,1,0.5", "--mix") == [0, 0.5, 1] and numbers(None, "--mix") == []


def test_what_all_are_held_against(folders):
    chosen = cast(["a", "b"], against="a")
    assert chosen.baseline.label == "a x 1" and [arm.label for arm in chosen.arms] == ["b x 1"]
    assert len(chosen.adapters) == 2 and cast(["base"]).arms == []


def test_every_arm_has_a_folder_of_its_own(folders):
    arms = cast(["a@0.5", "a@-0.5", "b@0.5", "a@0.5+b@0.5", "best-of:2"]).arms
    slugs = [arm.slug for arm in arms]
    assert len(set(slugs)) == 5 and all("/" not in slug and " " not in slug for slug in slugs)


@pytest.mark.parametrize(
    ("systems", "options", "said"),
    [
        (["nowhere"], {}, "there is no adapter"),
        (["a@much"], {}, '"much" is no strength'),
        (["best-of:some"], {}, "how many"),
        (["reno:0"], {}, "how many"),
        (["a"], {"strengths": [1.0], "mix": [1.0]}, "different sweeps"),
        (["a"], {"mix": [0.0, 1.0]}, "--mix takes two different adapters"),
        (["a", "a"], {"mix": [0.0, 1.0]}, "--mix takes two different adapters"),
        (["a", "b", "base"], {"mix": [0.0, 1.0]}, "--mix takes two different adapters"),
        ([], {}, "what is to be evaluated"),
        (["base"], {}, "on which model"),
        (["a", "old/a"], {}, "different models"),
        (["base"], {"model": "somebody/model"}, "by what is it judged"),
        (["base"], {"model": "somebody/model", "rewards": ["clip"]}, "on which prompts"),
        (["a"], {"rewards": ["clop"]}, "clop"),
        (["a"], {"changes": ["sampling.steps=3"]}, "sampling.steps"),
    ],
)
def test_mistakes_are_said_in_a_line(folders, systems, options, said):
    with pytest.raises(UserError, match=said) as caught:
        plan(systems, **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no list of numbers"):
        numbers("a,b", "--strengths")


@pytest.mark.parametrize("order", [("a", "few"), ("few", "a")])
def test_adapters_of_other_bases_are_not_measured_on_one(folders, order):
    """A run on a base with another adapter merged into it, beside one on that base as it is."""
    said = yaml.safe_load((folders / "a" / "recipe.yaml").read_text())
    shutil.copytree(folders / "a", folders / "few")
    said["model"]["base_adapter"] = str(folders / "b" / "adapter")
    (folders / "few" / "recipe.yaml").write_text(yaml.safe_dump(said))
    with pytest.raises(UserError, match=r"different models, .*few on .* with base_adapter="):
        plan(list(order), rewards=["brightness"], prompts="shapes:report")


def test_judges_are_checked_before_anything_is_drawn(folders, tmp_path, monkeypatch):
    """Those that only look on, and the rewards by which an arm chooses its noise."""
    monkeypatch.chdir(tmp_path)
    gone = {"name": "python", "function": "gone.py:score"}
    with pytest.raises(UserError, match=r"^--reward python\.function: .*there is no file"):
        plan(["base"], recipe="a", rewards=["python"], changes=["python.function=gone.py:score"])
    with pytest.raises(UserError, match=r"^--reward own\.function: .*there is no file"):
        plan(["best-of:2"], recipe="a", rewards=["brightness"], changes=[f"rewards.own={gone}"])


def test_what_is_not_said_comes_from_the_run(folders):
    made = plan(["a"], count=6)
    assert made.recipe.sampling.num_steps == 4 and list(made.rewards) == ["brightness"] == made.trained_on
    assert made.prompts == "shapes:report" and len(made.items) == 6, "of the embedded world"
    changed = plan(["a"], count=6, seed=5, changes=["sampling.num_steps=2"], rewards=["sharp=sharpness", "brightness"])
    assert changed.recipe.train.seed == 5 and changed.recipe.sampling.num_steps == 2
    assert list(changed.rewards) == ["sharp", "brightness"] and changed.trained_on == ["brightness"]
    clip = plan(["a"], count=6, rewards=["clip"], changes=["clip.model=embedded:shapes-clip"])
    assert clip.rewards["clip"].model == "embedded:shapes-clip" and "clip" not in clip.recipe.rewards


def test_noise_is_optimised_as_the_models_own_recipe_says(folders):
    made = plan(["reno:3"], recipe="a", count=6)
    assert made.recipe.objective.name == "reno" and made.recipe.optim.algorithm == "sgd"
    assert made.recipe.sampling.num_steps == 4 and list(made.recipe.rewards) == ["brightness"]
    assert plan(["best-of:3"], count=6).recipe.model.checkpoint == "embedded:shapes-turbo", "the one reno takes"
    assert plan(["best-of:3"], model="embedded:shapes-turbo", count=6).trained_on == ["eye", "pick"]


def test_what_any_adapter_was_trained_on_is_no_judge(folders):
    """b maximises another form of what a only reports."""
    (folders / "a" / "recipe.yaml").write_text(
        "model: {name: sd, checkpoint: 'embedded:shapes-sd'}\nobjective: draft\ndata: {name: prompts, prompts: [x]}\n"
        "rewards: {brightness: {}}\nevaluate: {prompts: [a star, a circle], num_prompts: 2, num_pictures: 1, rewards: "
        "{clip: {model: embedded:shapes-clip}, gold: {}}}\n"
    )
    (folders / "b" / "recipe.yaml").write_text(
        "model: {name: sd, checkpoint: 'embedded:shapes-sd'}\nobjective: draft\ndata: {name: prompts, prompts: [x]}\n"
        "rewards: {same: {name: clip, model: embedded:shapes-clip, form: logit, weight: 2}}\n"
    )
    assert plan(["a"]).trained_on == ["brightness"]
    both = plan(["a", "b"])
    assert list(both.rewards) == ["brightness", "same", "clip", "gold"]
    assert both.trained_on == ["brightness", "same", "clip"]
    own = plan(["a"], rewards=["clip", "gold"], changes=["clip.form=logit"]).rewards["clip"]
    assert (own.model, own.form) == ("embedded:shapes-clip", "logit"), "a change to the recipe's own"
