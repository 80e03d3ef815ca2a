"""From a recipe to its report, on a tiny random Stable Diffusion: what is written, chosen, resumed and refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import align
from align.errors import UserError
from align.policy import lora
from align.reports import summary
from align.run import Run
from align.training import resume

PROMPTS = ["a red star", "two blue cats", "a square", "x above y"]


@pytest.fixture(scope="session")
def sd_folder(tiny_sd_factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    tiny_sd_factory().save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(sd_folder, tmp_path):
    watched = {"prompts": PROMPTS[:2], "rewards": {"brightness": {}}, "num_prompts": 2}
    return {
        "model": {"name": "sd", "checkpoint": str(sd_folder)},
        "objective": {"name": "draft"},
        "data": {"name": "prompts", "prompts": PROMPTS},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 3, "guidance_scale": 2.0, "last_k": 1},
        "adapter": {"rank": 2, "alpha": 4},
        "optim": {"lr": 2e-2},
        "train": {"num_updates": 4, "batch_size": 3, "checkpoint_every": 2},
        "hooks": {"panel": {**watched, "best": "brightness", "every": 2}},
        "evaluate": {"prompts": PROMPTS, "num_prompts": 4, "num_pictures": 3},
        "output": str(tmp_path / "run"),
    }


def same_numbers(records):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def adapter_bytes(run):
    return (run.output / "adapter" / lora.FILE_NAME).read_bytes()


def test_a_run_writes_what_it_says(recipe):
    recipe["hooks"] |= {
        "samples": {"prompts": PROMPTS, "num_images": 3, "every": 2},
        "drift": {"prompts": PROMPTS, "num_prompts": 2, "num_times": 2, "every": 2},
    }
    run = align.train(recipe)
    steps = [record["step"] for record in run.metrics]
    assert steps == [0, 1, 2, 3, 4]
    assert "panel/brightness" in run.metrics[0] and "loss" not in run.metrics[0]
    update = {"loss", "reward/brightness", "reward/total", "grad_norm", "grad_over_eps", "adapter_norm", "lr"}
    update |= {"outcome", "seconds"}
    assert run.metrics[1].keys() == update | {"step"}
    assert run.metrics[2].keys() == update | {"step", "panel/brightness", "drift"}
    assert run.metrics[4]["drift"] > 0

    report = run.report
    assert (report.method, report.seed, report.num_processes, report.num_updates) == ("draft", 0, 1, 4)
    # 4 updates x 3 rows x 2 (guidance): 3 calls each, the last one again for the backward pass, which counts 2
    assert report.network_calls == 4 * 3 * 2 * (3 + 1)
    assert report.forward_equivalents == 4 * 3 * 2 * (3 + 1 + 2)
    assert report.trained_on == ["brightness"] and report.stopped is None
    score = report.scores["brightness"]
    assert score.num_prompts == 4 and score.difference.low <= score.difference.mean <= score.difference.high
    assert score.difference.mean == pytest.approx(score.after.mean - score.before.mean)
    assert score.after.mean > score.before.mean  # brightness is easily trained

    sizes = {path.relative_to(run.output).as_posix(): Image.open(path).size for path in run.output.rglob("*.png")}
    samples = {f"samples/step-{step:06d}.png" for step in (0, 2, 4)}
    report = {f"report/{number:04d}-{when}.png" for number in range(3) for when in ("before", "after")}
    assert {"before_after.png"} | samples | report == sizes.keys()
    assert {"report.html", "adapter", "recipe.yaml", "summary.json"} <= {path.name for path in run.output.iterdir()}
    told = json.loads((run.output / "report" / "scores.json").read_text())
    assert told["prompts"] == PROMPTS and len(told["scores"]["after"]["brightness"]) == 4
    assert Run(run.output).recipe == run.recipe
    schema = summary.Summary.model_json_schema()
    assert not [name for name, field in schema["properties"].items() if "description" not in field]


def test_the_panel_chooses_the_adapter(recipe):
    recipe["hooks"]["panel"]["rewards"] = {"darkness": {"name": "brightness", "weight": -1.0}}
    recipe["hooks"]["panel"]["best"] = "darkness"
    run = align.train(recipe)
    panel = {record["step"]: record["panel/darkness"] for record in run.metrics if "panel/darkness" in record}
    assert panel.keys() == {0, 2, 4}
    best = max(panel, key=lambda step: panel[step])
    assert run.report.chosen_update == best == 4  # raw scores are watched, without their weights
    shutil.rmtree(run.output)
    recipe["optim"]["lr"] = 1e-12  # nothing moves: the first measurement stays the best
    run = align.train(recipe)
    assert run.report.chosen_update == 0
    assert run.report.scores["brightness"].difference.mean == 0


def test_the_pipeline_has_the_adapter_and_strength_zero_is_the_base(recipe):
    run = align.train(recipe)
    recipe["adapter"]["init"] = str(run.output / "adapter")

    def draw(pipeline, **settings):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipeline(PROMPTS[:1], generator=generator, output_type="np", **settings).images

    from diffusers import StableDiffusionPipeline

    stock = StableDiffusionPipeline.from_pretrained(recipe["model"]["checkpoint"], safety_checker=None)
    base = draw(stock, num_inference_steps=3, guidance_scale=2.0)  # the run's own steps and guidance
    assert (draw(run.pipeline(0.0)) == base).all()
    full, half = draw(run.pipeline()), draw(run.pipeline(0.5))
    assert abs(full - base).max() > abs(half - base).max() > 1e-3


def test_resuming_equals_the_unbroken_run(recipe, tmp_path):
    whole = align.train(recipe, output=str(tmp_path / "whole"))
    run = align.train(recipe, {"train.num_updates": 3})  # at a constant rate, the beginning of the longer run
    assert run.report.num_updates == 3
    run = align.train(recipe)
    assert same_numbers(run.metrics)[:3] == same_numbers(whole.metrics)[:3]
    assert same_numbers(run.metrics)[-1] == same_numbers(whole.metrics)[-1]
    assert adapter_bytes(run) == adapter_bytes(whole)
    assert run.report.scores == whole.report.scores
    assert run.report.network_calls == whole.report.network_calls
    again = align.train(recipe)  # finished: nothing is trained, the report is the same
    assert again.report.scores == whole.report.scores and same_numbers(again.metrics) == same_numbers(run.metrics)


def test_a_run_that_is_done_says_so_when_it_is_asked_again(recipe, capsys):
    first = align.train(recipe)
    capsys.readouterr()
    again = align.train(recipe)
    said = capsys.readouterr().out
    assert "all 4 updates are done, by " in said and "only the report is made anew" in said and "going on" not in said
    assert again.metrics == first.metrics


def test_a_changed_recipe_is_refused_by_its_keys_and_never_starts_over(recipe):
    align.train(recipe)
    with pytest.raises(UserError, match=r"optim.lr: 0.02 -> 0.01, sampling.last_k: 1 -> 2.*--resume never"):
        align.train(recipe, {"optim.lr": 0.01, "sampling.last_k": 2})
    with pytest.raises(UserError, match=r"train.num_updates: 4 -> 2"):
        align.train(recipe, {"train.num_updates": 2})
    with pytest.raises(UserError, match=r"num_updates: 4 -> 6, over which optim.schedule=cosine spreads"):
        list_of = dict(recipe, optim={"lr": 0.02, "schedule": "cosine"})
        align.train(list_of, resume="never")
        align.train(list_of, {"train.num_updates": 6})
    stale = Path(recipe["output"]) / "samples" / "step-000099.png"
    stale.parent.mkdir(exist_ok=True)
    stale.write_bytes(b"of an earlier run")
    run = align.train(recipe, {"train.num_updates": 2}, resume="never")
    assert [record["step"] for record in run.metrics] == [0, 1, 2] and run.report.num_updates == 2
    assert [path.name for path in (run.output / "checkpoints").iterdir()] == ["step-000002"]
    assert not stale.exists() and run.recipe.train.num_updates == 2


def test_a_run_is_resumed_from_a_path(recipe, tmp_path):
    first = align.train(recipe)
    checkpoint = first.output / "checkpoints" / "step-000002"
    copy = align.train(recipe, output=str(tmp_path / "copy"), resume=str(checkpoint))
    assert adapter_bytes(copy) == adapter_bytes(first)
    assert [record["step"] for record in copy.metrics] == [0, 1, 2, 3, 4], "with the record of what led to it"
    again = align.train(recipe, resume=str(checkpoint))  # what came after the checkpoint is done, and recorded, anew
    assert [record["step"] for record in again.metrics] == [0, 1, 2, 3, 4]
    assert adapter_bytes(again) == adapter_bytes(copy)
    with pytest.raises(UserError, match=r"--resume .*nowhere: there is no checkpoint"):
        align.train(recipe, resume=str(tmp_path / "nowhere"))
    (checkpoint / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"state.json has changed"):
        align.train(recipe, resume=str(checkpoint))


def test_keys_that_change_no_update_may_change():
    old = {"train": {"micro_batch_size": 2, "seed": 0}, "output": "a", "hooks": {"metrics": {"trackers": []}}}
    new = {"train": {"micro_batch_size": 4, "seed": 1}, "output": "b", "hooks": {"metrics": {"trackers": ["x"]}}}
    assert list(resume.changed(old, new)) == [("train.seed", 0, 1)]


def test_a_signal_during_a_hook_of_the_users_own_saves_and_goes_on(recipe, tmp_path):
    hook = tmp_path / "killer.py"
    hook.write_text(
        "import os, signal\n"
        "from align.hooks._base import Hook\n"
        "from align.registry import ComponentConfig\n"
        "class KillerConfig(ComponentConfig):\n    at: int\n"
        "class Killer(Hook):\n"
        "    Config = KillerConfig\n"
        "    def __init__(self, config, around):\n        self.at = config.at\n"
        "    def after_update(self, state):\n"
        "        if state.step == self.at and not os.path.exists('once'):\n"
        "            open('once', 'w').close()\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        recipe["hooks"]["killer"] = {"name": f"{hook}:Killer", "at": 3}
        run = align.train(recipe)
        assert run.interrupted == "SIGTERM" and run.metrics[-1]["step"] == 3
        assert not (run.output / "summary.json").exists()
        run = align.train(recipe)
    assert run.interrupted is None and [r["step"] for r in run.metrics] == [0, 1, 2, 3, 4]


def test_a_signal_during_the_report_ends_it_and_the_same_call_writes_it(recipe, tmp_path, monkeypatch):
    from align.policy.painter import Painter

    score = Painter.score

    def interrupted(self, *args, stream, **kwargs):
        if stream == "report":
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return score(self, *args, stream=stream, **kwargs)

    align.train(recipe)
    monkeypatch.setattr(Painter, "score", interrupted)
    run = align.train(recipe, resume="never")  # nothing of the finished run may be taken for this one's
    assert run.interrupted == "SIGINT" and not (run.output / "summary.json").exists()
    monkeypatch.undo()
    assert align.train(recipe).report.num_updates == 4


def test_a_failing_tracker_stops_nothing_and_a_working_one_is_told_everything(recipe, tmp_path, capsys):
    trackers = tmp_path / "trackers.py"
    trackers.write_text(
        "import json\n"
        "from accelerate.tracking import GeneralTracker\n"
        "class Notes(GeneralTracker):\n"
        "    name, tracker, requires_logging_directory = 'notes', None, True\n"
        "    def __init__(self, project, folder):\n"
        "        super().__init__(); self.file = open(f'{folder}/{type(self).__name__}', 'w')\n"
        "    def store_init_configuration(self, values): print(json.dumps(values), file=self.file)\n"
        "    def log(self, values, step=None, **kwargs): print(step, json.dumps(values), file=self.file)\n"
        "    def finish(self): self.file.close()\n"
        "class Broken(Notes):\n"
        "    def log(self, values, step=None, **kwargs):\n"
        "        if step == 2: raise ConnectionError('the server is gone')\n"
    )
    names = [f"{trackers}:Broken", f"{trackers}:Notes"]
    recipe["hooks"]["metrics"] = {"trackers": names}
    run = align.train(recipe)
    said = capsys.readouterr().out
    assert "Broken is switched off, the run goes on: ConnectionError: the server is gone" in said
    assert [record["step"] for record in run.metrics] == [0, 1, 2, 3, 4]
    configuration, *told = (run.output / "Notes").read_text().splitlines()
    assert json.loads(configuration)["optim.lr"] == 0.02
    assert [line.split()[0] for line in told] == ["0", "1", "2", "3", "4"]


def test_a_folder_that_is_no_runs_keeps_its_files(recipe, tmp_path):
    own = tmp_path / "run" / "samples" / "my.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(UserError, match=r"is no run's folder.* \(samples\)\. Set output to another folder"):
        align.train(recipe, resume="never")
    assert own.read_text() == "mine" and len(list(own.parent.parent.iterdir())) == 1


def test_asking_for_more_processes_than_started_is_an_error(recipe):
    with pytest.raises(UserError, match=r"train.num_processes=2, but 1 started.*torchrun --nproc_per_node 2"):
        align.train(recipe, {"train.num_processes": 2})


def test_a_finished_run_whose_checkpoints_are_gone_is_not_replaced(recipe):
    run = align.train(recipe)
    shutil.rmtree(run.output / "checkpoints")
    kept = adapter_bytes(run)
    with pytest.raises(UserError, match=r"output=.*: a run has ended there \(adapter.*--resume never"):
        align.train(recipe)
    assert adapter_bytes(run) == kept and run.metrics and run.report.num_updates == 4
