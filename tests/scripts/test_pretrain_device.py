"""Every stage's loss, but that of latent, which stays on the CPU, where its networks are elsewhere. There is no other
device on most machines, so it is the one that holds no numbers: like a GPU, it refuses tensors that were left behind,
but for the ids of an embedding."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from align.shapes.prompts import prompts
from scripts.pretrain import clip, common, detector, eye, pick, pool, restore, samples, sd, trajectories, tune

STAGES = ("text", "vae", "clip", "sd", "web", "eye", "detector", "tune", "flow", "flow_web", "turbo", "pick")
META = torch.device("meta")


class Reached(Exception):
    """The loss of a step was computed."""


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        _everywhere(patch, "WORK", folder)
        restore.main()
    return folder


def _everywhere(patch: pytest.MonkeyPatch, name: str, value: object) -> None:
    for stage in (*STAGES, "common", "pool", "samples", "trajectories", "restore"):
        module = importlib.import_module(f"scripts.pretrain.{stage}")
        if hasattr(module, name):
            patch.setattr(module, name, value)


def _images(count: int) -> Tensor:
    return torch.randint(256, (count, 3, 32, 32), generator=common.generator(1), dtype=torch.uint8)


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_step_reads_is_where_its_networks_are(stage, work, monkeypatch):
    captions = [c for c in prompts("train", 4, 0) for _ in range(4)]
    latents = torch.zeros(len(captions), 4, 8, 8)

    def train(name, modules, loss, **_) -> dict:
        value = loss(1)
        assert value.device == META and all(p.device == META for m in modules.values() for p in m.parameters())
        raise Reached

    _everywhere(monkeypatch, "WORK", work)
    _everywhere(monkeypatch, "DEVICE", META)
    _everywhere(monkeypatch, "train", train)
    wanted, scenes = common.draw(16, 0)
    monkeypatch.setattr(clip, "pool", lambda seed: (_images(16), clip.patch_labels(scenes), wanted))
    monkeypatch.setattr(pick, "DRAWN", 4)
    monkeypatch.setattr(pool, "CHUNK", 16), monkeypatch.setattr(pool, "PART", 16)
    monkeypatch.setattr(sd, "named", lambda told, labels: (told.mean() + labels).mean())  # it asks for numbers
    monkeypatch.setattr(samples, "load", lambda seed=0: (latents, latents, captions))
    monkeypatch.setattr(samples, "decode", lambda z: _images(len(z)) / 255)
    monkeypatch.setattr(trajectories, "load", lambda seed=0: (latents[:, None].expand(-1, 5, -1, -1, -1), captions))
    monkeypatch.setattr(tune, "held_out", lambda *_: (_images(16) / 255, captions))
    monkeypatch.setattr(eye, "drawn", lambda seed: (_images(16), torch.zeros(16, 33, 16, 16)))
    for module in (eye, detector):
        monkeypatch.setattr(module, "sampled", lambda split, count, seed: (_images(16), captions))
    with pytest.raises(Reached):
        importlib.import_module(f"scripts.pretrain.{stage}").main(seed=0)


def test_what_looks_draw_with_is_in_one_place(work, monkeypatch):
    """The autoencoder stayed on the CPU, and a stage would have ended at its first look."""
    _everywhere(monkeypatch, "WORK", work)
    _everywhere(monkeypatch, "DEVICE", META)
    source = sd.load()
    for pipe in (sd.pipeline(source.unet.to(META), source.text_encoder.to(META)), *samples.bases()):
        assert {pipe.vae.device, pipe.unet.device, pipe.text_encoder.device} == {META}
