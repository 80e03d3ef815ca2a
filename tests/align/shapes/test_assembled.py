"""Checkpoints that ship as a LoRA on another one."""

import json
import os
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from align.errors import UserError
from align.shapes import assembled, embedded
from scripts.pretrain import turbo


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder as it ships, beside a copy of its base, and the network it stands for."""
    home = tmp_path / "checkpoints"
    shutil.copytree(embedded.FOLDER / "shapes-sd", home / "shapes-sd")
    monkeypatch.setattr(embedded, "FOLDER", home)
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    pipe = StableDiffusionPipeline.from_pretrained(home / "shapes-sd")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=turbo.LAYERS, init_lora_weights=False))
    folder = home / "shapes-few"
    (folder / "scheduler").mkdir(parents=True)
    settings = json.loads((home / "shapes-sd" / "scheduler" / "scheduler_config.json").read_text())
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(settings | {"prediction_type": "v_prediction"})
    )
    (folder / assembled.BASE).write_text('{"base": "shapes-sd"}')
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return folder, pipe.unet


def test_the_merged_network_is_the_base_with_its_lora_and_the_folder_a_stock_one(shipped):
    _, network = shipped
    to = embedded.resolve("embedded:shapes-few")
    pipe = StableDiffusionPipeline.from_pretrained(to)
    assert pipe.scheduler.config["prediction_type"] == "v_prediction"
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    told, words = torch.tensor([999, 400]), torch.zeros(2, 16, 128)
    with torch.no_grad():
        merged, beside = pipe.unet(noise, told, words).sample, network(noise, told, words).sample
        network.disable_adapters()
        base = network(noise, told, words).sample
    assert (beside - base).std() > 0.05 * base.std()
    assert (merged - beside).std() < 0.01 * (beside - base).std(), "but for rounding to half precision"
    assert not [p for p in to.parent.iterdir() if p.name.startswith(".")]


def test_it_is_made_once_and_anew_when_the_lora_changes(shipped):
    folder, _ = shipped
    to = embedded.resolve("embedded:shapes-few")
    stamp = os.stat(to / assembled.NETWORK).st_mtime_ns
    assert embedded.resolve("embedded:shapes-few") == to and os.stat(to / assembled.NETWORK).st_mtime_ns == stamp
    with open(folder / assembled.ADAPTER, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert embedded.resolve("embedded:shapes-few") != to


def test_a_cache_that_cannot_be_written_is_said_in_one_line(shipped, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "taken"))
    with pytest.raises(UserError, match=r"taken.embedded: cannot be written .*shapes-few.*Set ALIGN_CACHE"):
        embedded.resolve("embedded:shapes-few")


def test_what_ships_twice_ships_once_and_comes_back_whole(tmp_path, monkeypatch):
    home = tmp_path / "checkpoints"
    for name, files in {"shapes-sd": {"vae": b"v", "unet": b"u"}, "a": {"vae": b"v", "one": b"o", "two": b"o"}}.items():
        for part, weights in files.items():
            (home / name / part).mkdir(parents=True)
            (home / name / part / "w.safetensors").write_bytes(weights)
            (home / name / part / "config.json").write_text(f'"{name} {part}"')
    monkeypatch.setattr(embedded, "FOLDER", home)
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    assembled.share(home)
    assert not (home / "a/vae/w.safetensors").exists() and not (home / "a/two/w.safetensors").exists()
    assert embedded.resolve("embedded:shapes-sd") == home / "shapes-sd", "its own weights stay with the base"
    whole = embedded.resolve("embedded:a")
    assert {part: (whole / part / "w.safetensors").read_bytes() for part in ("vae", "one", "two")} == {
        "vae": b"v",
        "one": b"o",
        "two": b"o",
    }
    assert (whole / "vae/config.json").read_text() == '"a vae"', "settings are each folder's own"
    assert not (whole / assembled.SHARED).exists()
    assembled.share(home)
    assert embedded.resolve("embedded:a") == whole, "done again it changes nothing"
    (home / "shapes-sd/vae/w.safetensors").write_bytes(b"new")
    assert (embedded.resolve("embedded:a") / "vae/w.safetensors").read_bytes() == b"new"


def test_what_ships_is_at_most_thirty_megabytes():
    assert sum(p.stat().st_size for p in embedded.FOLDER.rglob("*") if p.is_file()) < 30e6
