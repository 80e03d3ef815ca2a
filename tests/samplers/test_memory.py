"""Bytes that a rollout keeps for the backward pass, counted as storages that are alive after the forward pass."""

import gc

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from samplers import FlowSchedule, GradPolicy, Prediction, TensorCond, cfg, grids, last, sample

LATENT = (2, 4, 16, 16)
LATENT_BYTES = 4 * 2 * 4 * 16 * 16


class Storages(TorchDispatchMode):
    """Remembers, without keeping alive, every storage that an operation returns. C++ and Python owners count alike."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self.seen[StorageWeakRef(storage)] = storage.nbytes()
        return result

    def alive(self):
        gc.collect()
        return sum(size for reference, size in self.seen.items() if not reference.expired())


class Network(torch.nn.Module):
    schedule, kind = FlowSchedule(), Prediction.FLOW

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(4, 32, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(32, 4, 3, padding=1)
        )

    def forward(self, x_t, t, cond):
        return self.layers(x_t) * t + cond.tensors["text"][:, :, None, None]


def kept_bytes(k, *, checkpoint=True):
    torch.manual_seed(0)
    network, x_T = Network(), torch.randn(LATENT)
    uncond, cond = TensorCond({"text": torch.zeros(1, 4)}), TensorCond({"text": torch.ones(2, 4)})
    with Storages() as storages:
        policy = GradPolicy(last(k).keep, checkpoint=checkpoint)
        x0 = sample(cfg(network, uncond, 5.0), x_T, grids.flow(10), cond, grad=policy).x0
        kept = storages.alive()
    assert x0.requires_grad == (k > 0)
    return kept


def test_one_more_step_keeps_one_more_latent():
    kept = {k: kept_bytes(k) for k in (1, 2, 4, 8)}
    for fewer, more in [(1, 2), (2, 4), (4, 8)]:
        assert (kept[more] - kept[fewer]) / (more - fewer) <= 1.1 * LATENT_BYTES, kept


def test_the_count_sees_what_is_kept():
    """Without checkpointing every activation of 32 channels is kept, for both halves of the guided batch."""
    per_step = (kept_bytes(4, checkpoint=False) - kept_bytes(2, checkpoint=False)) / 2
    assert per_step > 2 * 32 / 4 * LATENT_BYTES
    assert kept_bytes(0) == pytest.approx(LATENT_BYTES, rel=0.1)
