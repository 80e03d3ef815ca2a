"""A run that is taken up again is held to what its recipe's names stood for: prompts, pairs, code, weights, judges."""

import json
import shutil

import pytest
import torch
import yaml
from pair_toys import picture, write_pairs

import align
from align.config import load_recipe
from align.errors import UserError
from align.training import contents
from align.training.resume import changed


@pytest.fixture(scope="module")
def sd_folder(tiny_sd_factory, tmp_path_factory):
    tiny_sd_factory().save_pretrained(folder := tmp_path_factory.mktemp("contents") / "model")
    return folder


@pytest.fixture
def recipe(sd_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("a star\na cat\na box\n")
    (tmp_path / "mine.py").write_text("def warm(images, prompts):\n    return images[:, 0].mean((1, 2))\n")
    return {
        "model": {"name": "sd", "checkpoint": str(sd_folder)},
        "objective": "draft",
        "data": {"name": "prompts", "prompts": str(tmp_path / "prompts.txt"), "count": 2},
        "rewards": {"warm": {"name": "python", "function": f"{tmp_path}/mine.py:warm"}},
        "sampling": {"num_steps": 1, "guidance_scale": 1.0},
        "train": {"num_updates": 1, "batch_size": 1},
        "adapter": {"rank": 2},
        "output": str(tmp_path / "run"),
    }


def digests(recipe):
    return contents.of_recipe(load_recipe(recipe, on_disk=False))


def test_what_a_recipe_names_is_known_by_its_content(recipe, tmp_path):
    before = digests(recipe)
    assert before.keys() == {"data.prompts", "rewards.warm.function", "model.checkpoint"}
    (tmp_path / "prompts.txt").write_bytes("\ufeffa star\r\na cat\r\nanother\r\n".encode())
    assert digests(recipe) == before, "the first two prompts are the same, however they are written"
    (tmp_path / "prompts.txt").write_text("a star\na dog\n")
    assert contents.changed(before, digests(recipe)) == ["data.prompts"]
    (tmp_path / "mine.py").write_text("def warm(images, prompts):\n    return -images[:, 0].mean((1, 2))\n")
    assert contents.changed(before, digests(recipe)) == ["data.prompts", "rewards.warm.function"]
    copied = shutil.copytree(recipe["model"]["checkpoint"], tmp_path / "copy")
    moved = digests(recipe | {"model": {"name": "sd", "checkpoint": str(copied)}})
    assert moved["model.checkpoint"] == before["model.checkpoint"], "a place is no content"
    config = copied / "vae" / "config.json"
    config.write_text(config.read_text().replace("0.5", "0.25"))
    changed_model = digests(recipe | {"model": {"name": "sd", "checkpoint": str(copied)}})
    assert changed_model["model.checkpoint"] != before["model.checkpoint"]


def test_hooks_prompts_adapters_and_embedded_models_count_and_reports_do_not(recipe, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "pytorch_lora_weights.safetensors").write_bytes(b"1")
    (tmp_path / "select.txt").write_text("x\ny\n")
    told = recipe | {
        "model": {"name": "sd", "checkpoint": "embedded:shapes-sd"},
        "adapter": {"init": str(tmp_path / "adapter")},
        "hooks": {"panel": {"prompts": str(tmp_path / "select.txt"), "num_prompts": 2, "rewards": {"jpeg": {}}}},
        "evaluate": {"prompts": str(tmp_path / "prompts.txt"), "num_prompts": 2, "num_pictures": 2},
    }
    before = digests(told)
    assert {"adapter.init", "hooks.panel.prompts", "model.checkpoint"} <= before.keys()
    assert not any(key.startswith("evaluate") for key in before)
    (tmp_path / "adapter" / "README.md").write_text("notes change nothing")
    assert digests(told) == before
    (tmp_path / "adapter" / "pytorch_lora_weights.safetensors").write_bytes(b"2")
    assert contents.changed(before, digests(told)) == ["adapter.init"]


def test_a_large_file_is_known_by_blocks_all_over_it(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "WHOLE", 1000)
    monkeypatch.setattr(contents, "BLOCK", 10)
    monkeypatch.setattr(contents, "NUM_BLOCKS", 100)
    file, data = tmp_path / "w.safetensors", bytearray(range(256)) * 20
    file.write_bytes(data)
    before = contents.of_path(file)
    for place in (0, 5119):
        file.write_bytes(data[:place] + b"\xff\x00"[place == 5119 :][:1] + data[place + 1 :])
        assert contents.of_path(file) != before
    file.write_bytes(data + b"x")
    assert contents.of_path(file) != before
    file.write_bytes(data)
    assert contents.of_path(file) == before


def test_a_run_on_other_prompts_or_code_is_not_taken_up(recipe, tmp_path):
    align.train(recipe)
    longer = {"train.num_updates": 2}
    (tmp_path / "prompts.txt").write_text("a star\na dog\n")
    with pytest.raises(UserError, match=r"step-000001 belongs to other contents behind the same names: data\.prompts"):
        align.train(recipe, longer)
    (tmp_path / "prompts.txt").write_text("a star\na cat\n")
    assert align.train(recipe, longer).report.num_updates == 2


def swapped(folder):
    lines = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    turned = [record | {"winner": record["loser"], "loser": record["winner"]} for record in lines]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in turned))


def repainted(folder):
    picture(folder / "images/1.png", 40)


def renamed(folder):
    text = (folder / "pairs.jsonl").read_text()
    (folder / "pairs.jsonl").write_text(text.replace("number 0", "another"))


@pytest.mark.parametrize(
    ("change", "said"),
    [(swapped, "which is preferred"), (repainted, "pictures"), (renamed, "prompts")],
    ids=["swapped", "repainted", "renamed"],
)
def test_a_run_on_other_pairs_is_not_taken_up(recipe, tmp_path, change, said):
    """Swapped labels would meet the reference's errors of before: loss .5 at the start where .693 is right."""
    write_pairs(tmp_path / "pairs", 2)
    told = recipe | {
        "objective": {"name": "diffusion_dpo", "num_draws": 1},
        "data": {"name": "preferences", "pairs": str(tmp_path / "pairs")},
        "rewards": {},
    }
    align.train(told)
    change(tmp_path / "pairs")
    with pytest.raises(UserError, match=f"other contents behind the same names: .*data.pairs, {said}"):
        align.train(told, {"train.num_updates": 2})


def test_what_a_dropout_mask_is_drawn_for_is_not_free():
    """Masks are drawn for a micro-batch of a process: another cut is another run."""

    def tree(dropout, micro):
        train = {"micro_batch_size": micro, "num_updates": 1, "checkpoint_every": micro}
        return {"adapter": {"dropout": dropout}, "train": train, "data": {"cache": f"at {micro}"}}

    assert [key for key, *_ in changed(tree(0.1, 2), tree(0.1, 4))] == ["train.micro_batch_size"]
    assert not list(changed(tree(0.0, 2), tree(0.0, 4)))


def test_a_run_that_went_back_has_the_record_of_what_led_to_its_adapter(recipe, tmp_path):
    longer = {"train.num_updates": 4, "train.checkpoint_every": 1, "train.keep_checkpoints": 9}
    run = align.train(recipe, longer)
    whole = [record["step"] for record in run.metrics]
    base = run.output / "checkpoints" / "step-000002"
    back = align.train(recipe, longer, resume=str(base))
    assert [record["step"] for record in back.metrics] == whole
    names = {path.name for path in (run.output / "checkpoints").iterdir()}
    assert {"step-000002", "step-000003", "abandoned-step-000003", "abandoned-step-000004"} <= names
    elsewhere = align.train(recipe, longer, resume=str(base), output=str(tmp_path / "other"))
    assert [record["step"] for record in elsewhere.metrics] == whole, "the record of the run that it was begun in too"


def test_report_prompts_that_were_seen_are_said_by_their_words(recipe, tmp_path, capsys):
    (tmp_path / "report.jsonl").write_text('{"prompt": "A  star"}\n{"prompt": "x"}\n{"prompt": "y"}\n')
    evaluated = {"prompts": str(tmp_path / "report.jsonl"), "num_prompts": 3, "num_pictures": 3}
    panel = {"prompts": ["x", "z"], "num_prompts": 2, "rewards": {"jpeg": {}}, "best": "jpeg"}
    run = align.train(recipe | {"evaluate": evaluated, "hooks": {"panel": panel}})
    assert run.report.report_seen == {"trained on": 1, "chosen on": 1}
    told = "prompts of which 1 was trained on and 1 was chosen on, so that these are no held-out scores"
    assert f"report: 3 {told}" in capsys.readouterr().out
    assert told in (run.output / "adapter" / "README.md").read_text()
    assert told in (run.output / "report.html").read_text()
    clean = align.train(recipe | {"evaluate": evaluated | {"prompts": ["u", "v", "w"]}}, resume="never")
    assert clean.report.report_seen == {}
    assert "prompts that nothing was trained or chosen on" in (clean.output / "adapter" / "README.md").read_text()


def red(images, prompts):
    return images[:, 0].mean((1, 2))


def test_a_function_is_a_reward_wherever_it_was_written(recipe, tmp_path):
    """A module's by its path; one in a function, a lambda or an object by a name that only this process knows."""
    seen = []

    def blue(images, prompts):
        seen.append(len(images))
        return images[:, 2].mean((1, 2))

    class Green(torch.nn.Module):
        differentiable = True

        def forward(self, images, prompts):
            return images[:, 1].mean((1, 2))

    rewards = {"red": red, "blue": blue, "grey": lambda images, prompts: -images.mean((1, 2, 3)), "green": Green()}
    run = align.train(recipe, rewards=rewards)
    functions = {label: reward.function for label, reward in run.recipe.rewards.items()}
    assert functions["red"] == f"{__name__}:red" and functions["blue"] == "given:blue" and seen
    assert {"reward/red", "reward/blue", "reward/grey", "reward/green"} <= run.metrics[-1].keys()
    again = yaml.safe_load((run.output / "recipe.yaml").read_text())
    nested = align.train(recipe, {"rewards.warm": {"name": "python", "function": blue, "weight": 2}}, resume="never")
    assert nested.recipe.rewards["warm"].weight == 2
    again["rewards"]["blue"]["function"] = "given:of_another_process"
    with pytest.raises(UserError, match=r"was given to another process as an object.*my_file.py:of_another_process"):
        load_recipe(again)


def test_targets_that_name_no_layer_are_refused(recipe):
    for targets, said in (
        (["to_q", "to_kk"], "no layer is named to_kk"),
        ("(", "is no regular expression"),
        ([], "adapter.targets"),
        ("", "adapter.targets"),
    ):
        with pytest.raises(UserError, match=said.replace(".", r"\.")):
            align.train(recipe, {"adapter.targets": targets})


def test_an_adapter_with_a_part_that_is_not_trained_is_refused(recipe, tmp_path):
    from safetensors.torch import load_file, save_file

    run = align.train(recipe)
    file = run.output / "adapter" / "pytorch_lora_weights.safetensors"
    tensors = load_file(file)
    extra = {"text_encoder.text_model.q_proj.lora_A.weight": torch.zeros(2, 4)}
    save_file(tensors | extra, tmp_path / "both.safetensors")
    start = {"adapter.init": str(tmp_path / "both.safetensors"), "output": str(tmp_path / "second")}
    with pytest.raises(UserError, match="text_encoder"):
        align.train(recipe, start)
    for name, data in {"half": file.read_bytes()[:200], "page": b"<html></html>", "none": b""}.items():
        (tmp_path / f"{name}.safetensors").write_bytes(data)
        with pytest.raises(UserError, match=f"{name}.safetensors"):
            align.train(recipe, start | {"adapter.init": str(tmp_path / f"{name}.safetensors")})
    assert not (tmp_path / "second").exists()


def test_a_hub_id_is_known_by_the_commit_that_is_here(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = {"name": "sd", "checkpoint": "owner/model"}
    assert "model.checkpoint" not in digests(recipe | {"model": model}), "not downloaded yet: nothing to compare"
    reference = tmp_path / "hub" / "models--owner--model" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text("0123")
    assert digests(recipe | {"model": model})["model.checkpoint"] == "0123"
    assert "model.checkpoint" not in digests(recipe | {"model": model | {"revision": "v1"}}), "which a recipe may pin"
