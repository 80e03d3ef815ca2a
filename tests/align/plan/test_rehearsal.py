"""The plan's rehearsal on the meta device against the same micro-batch with real tensors."""

import json
import shutil

import pytest
import torch
from label_toys import write_labels
from safetensors.torch import load_file

import align
from align.config import load_recipe
from align.errors import UserError
from align.objectives._base import Parts
from align.plan import Peak, plan, rehearse
from align.plan.rehearsal import MeanPixel as _MeanPixel
from align.policy.lora import FILE_NAME
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.registry import DATA, MODELS, OBJECTIVES, build


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_sd_factory):
    path = tmp_path_factory.mktemp("plan") / "model"
    tiny_sd_factory().save_pretrained(path)
    return path


def recipe(folder, **sampling):
    return load_recipe(
        {
            "model": {"name": "sd", "checkpoint": str(folder), "decode_chunk": 2},
            "objective": "draft",
            "data": {"name": "prompts", "prompts": ["a", "b"]},
            "rewards": {"brightness": {}},
            "sampling": {"num_steps": 4, "last_k": 2, **sampling},
            "train": {"batch_size": 4},
        }
    )


def test_a_component_that_the_pipelines_class_does_not_take_is_ignored(folder, tmp_path):
    """As diffusers does: a repository lists what another class of pipeline has."""
    shutil.copytree(folder, tmp_path / "model")
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"prior": [None, None]}))
    assert rehearse(recipe(tmp_path / "model")).peak == rehearse(recipe(folder)).peak


def real(folder, **sampling) -> tuple[int, object]:
    """Peak bytes and calls of the same micro-batch on the CPU, weights and all."""
    loaded = recipe(folder, **sampling)
    model = build(MODELS, loaded.model)
    adapter = Adapter(loaded.adapter, model.network, list(model.lora_targets), seed=0)
    policy = Policy(model, adapter)
    objective = build(OBJECTIVES, loaded.objective, Parts(model, loaded.sampling, _MeanPixel(loaded.rewards), 0))
    batch = next(iter(build(DATA, loaded.data, batch_size=4, seed=0)))
    model.text.encode(["a", "b", ""])
    existing = [p for m in model.components().values() for p in (*m.parameters(), *m.buffers())]
    with Peak(existing) as memory:
        loss = objective(policy, batch)
        with policy.backward():
            loss.per_sample.sum().backward()
    return memory.peak, policy.calls


@pytest.mark.parametrize("checkpoint_steps", [True, False])
def test_calls_are_equal_and_memory_is_close(folder, checkpoint_steps):
    rehearsed = rehearse(recipe(folder, checkpoint_steps=checkpoint_steps))
    peak, calls = real(folder, checkpoint_steps=checkpoint_steps)
    assert rehearsed.calls == calls
    assert rehearsed.calls.recompute == (16 if checkpoint_steps else 0)
    assert rehearsed.peak == pytest.approx(peak, rel=0.15)


def test_what_is_kept_shows(folder):
    stored, recomputed = (rehearse(recipe(folder, checkpoint_steps=flag)).peak for flag in (False, True))
    assert stored > 1.3 * recomputed, "two stored network calls are more than one recomputed one"


def test_parameters(folder):
    rehearsed = rehearse(recipe(folder))
    model = build(MODELS, recipe(folder).model)
    assert rehearsed.parameters == {
        name: sum(p.numel() for p in module.parameters()) for name, module in model.components().items()
    }
    adapter = Adapter(recipe(folder).adapter, model.network, list(model.lora_targets), seed=0)
    assert rehearsed.trainable == sum(p.numel() for p in adapter.parameters())
    assert f"{rehearsed.trainable / 1e6:.3f} M" in plan(recipe(folder))


def test_peak_counts_what_is_alive_at_once():
    before = torch.zeros(1000)
    with Peak([before]) as memory:
        a = before + 1  # 4000 bytes
        b = a * 2  # 8000
        del a
        c = b.view(10, 100)  # no storage of its own
        d = c.sum()  # freed a: 4004
        del b, c
    assert memory.peak == 8000
    assert memory.current == d.nbytes


CAST = '''
import torch
from align.objectives._base import Loss, Move
from align.objectives._reward import RewardObjective, RewardObjectiveConfig
from align.policy.cast import Snapshot, Trained
from align.sampling import rollout
from samplers import Rng, last

class GameConfig(RewardObjectiveConfig):
    """Nothing to set."""

class Game(RewardObjective):
    Config = GameConfig
    adapters = {"fake": Trained(optim={"lr": 1e-3}), "old": Snapshot(decay=0.9)}

    def moves(self, step):
        return [Move("fake", self.fake), Move("default", self)]

    def images(self, policy, batch, role):
        rng = Rng(self.seed, batch.indices, batch.step)
        return rollout(self.sampling, self.model, policy.role(role), batch.prompts, rng, grad=last(1)).x0

    def fake(self, policy, batch, context=None):
        rows = self.images(policy, batch, "fake").square().mean((1, 2, 3))
        return Loss(rows, torch.ones_like(rows), {"size": rows.detach()})

    def __call__(self, policy, batch, context=None):
        with torch.no_grad():
            self.images(policy, batch, "old")
        losses, metrics = self.losses(self.images(policy, batch, "train"), batch.prompts)
        return Loss(losses, torch.ones_like(losses), metrics)
'''


def test_a_round_of_several_trainables_is_planned_trained_and_reported(folder, tmp_path, monkeypatch):
    (tmp_path / "game.py").write_text(CAST)
    monkeypatch.chdir(tmp_path)
    tree = recipe(folder, last_k=1).dump() | {"objective": {"name": "game.py:Game"}, "output": "run", "hooks": {}}
    tree["train"] |= {"num_updates": 2}
    plain, found = rehearse(recipe(folder, last_k=1)), rehearse(load_recipe(tree))
    assert found.trainable == 2 * plain.trainable and found.held == plain.trainable
    rows = 4 * 4 * 2  # samples, steps, guidance: once for each of the three roles, two of them with gradient
    assert (found.calls.forward, found.calls.backward) == (3 * rows, 2 * plain.calls.backward)
    run = align.train(tree)
    assert run.report.network_calls == 2 * (found.calls.forward + found.calls.recompute)
    assert run.metrics[-1]["fake/size"] > 0 and run.metrics[-1]["fake/lr"] == 1e-3
    numbers = f"{plain.trainable:,} numbers"
    assert run.report.adapters == {
        "fake": f"trained beside the run's own, {numbers}",
        "old": f"snapshot of default, running average, {numbers}",
    }
    page = (run.output / "report.html").read_text(encoding="utf-8")
    assert "loss of what is trained beside the adapter" in page and "snapshot of default, running average" in page
    exported = load_file(run.output / "adapter" / FILE_NAME)
    assert sum(tensor.numel() for tensor in exported.values()) == plain.trainable


GROUPS = ["train.batch_size=4", "data.group_size=2", "data.count=8"]
LABELS = ["data.labels=labels", "data.make=null"]
STEPS = ["data.num_prompts=2", "data.gap=0"]
AHEAD = {
    "dgpo/shapes": GROUPS,
    "d3po/shapes": GROUPS,
    "tdm_r1/shapes": GROUPS,
    "fairness/shapes": ["train.batch_size=4"],
    "kto/shapes": ["train.batch_size=4", *LABELS],
    "kto/shapes by other prompts": ["train.batch_size=4", "objective.baseline=mismatched", *LABELS],
    "spo/shapes": ["train.batch_size=20", *STEPS],
    "spo/shapes with guidance": ["train.batch_size=20", "sampling.guidance_scale=2", *STEPS],
    "spo/shapes in two updates": ["train.batch_size=3", "data.first_step=3", *STEPS],
    "tailorpo/shapes": ["train.batch_size=10", *STEPS],
}
"""{recipe and what is special: overrides}: what is asked of the network before an update is drawn or made ready."""


@pytest.mark.parametrize("which", AHEAD)
def test_calls_before_an_update_are_planned_too(which, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_labels(tmp_path / "labels")
    loaded = load_recipe(which.partition(" ")[0], [*AHEAD[which], "train.num_updates=2", "hooks={}", "evaluate=null"])
    found = rehearse(loaded)
    updates = loaded.train.num_updates * found.total / found.rows
    planned = updates * (found.calls.forward + found.calls.recompute) + loaded.train.num_updates * found.drawing
    run = align.train(loaded.dump() | {"output": "run"})
    assert run.report.num_updates == 2
    assert run.report.network_calls == planned


def test_what_moves_later_is_planned_too():
    """Unlike memory, rows are counted: of fake alone there would be fewer."""
    plain, later = (rehearse(load_recipe("tdm/shapes", [f"objective.warmup={n}"])) for n in (0, 50))
    assert (later.calls.forward, later.calls.backward) == (plain.calls.forward, plain.calls.backward)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sampling.image_size": [33, 32]}, r"sampling\.image_size=\[33, 32\]: both must be multiples of 4"),
        ({"adapter.targets": ["to_q", "to_kk"]}, "to_kk"),
    ],
)
def test_what_training_would_refuse_the_plan_refuses_too(folder, change, said):
    with pytest.raises(UserError, match=said) as caught:
        plan(load_recipe(recipe(folder).dump(), change))
    assert "\n" not in str(caught.value)


def test_a_learnt_word_of_a_published_model_is_planned_through_its_text_encoder():
    found = rehearse(load_recipe("soft_prompt/sd15", {"sampling.image_size": [64, 64]}, on_disk=False), gpu=True)
    assert found.trainable == 4 * 768 and found.calls.backward > 0


def test_what_is_not_rehearsed_says_so_before_anything_is_looked_for():
    judge = load_recipe("spm/sd15", on_disk=False)
    assert "unknown: spm trains a CLIP beside the model" in plan(judge)
    with pytest.raises(UserError, match="not rehearsed"):
        rehearse(judge)
