"""The plan's rehearsal on the meta device against the same micro-batch with real tensors."""

import pytest
import torch

from align.config import load_recipe
from align.objectives._base import Parts
from align.plan import Peak, _MeanPixel, plan, rehearse
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
