"""Checkpoints that are torn, mistaken or not there; and the cache of prompts."""

import hashlib
import sys
import time
import types

import pytest
import torch
from torch import nn

from rewards import RewardError
from rewards import _load as load
from rewards._text import PromptCache
from rewards._unpickle import read_module
from rewards.clip import Clip, ClipConfig


def digest(file) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_file_with_another_digest_is_refused_by_name(tmp_path):
    file = tmp_path / "head.pth"
    file.write_bytes(b"weights")
    load.verify(file, digest(file))
    load.verify(file, digest(file)[:8])
    with pytest.raises(RewardError, match=r"head\.pth is damaged or not what was published"):
        load.verify(file, "0" * 64)


def test_a_download_is_kept_and_checked_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    found = load.url_file("mine", "head", source.as_uri(), "mine.pth", digest(source))
    assert found == tmp_path / "checkpoints" / "mine.pth" and found.read_bytes() == b"weights"
    source.unlink()
    assert load.url_file("mine", "head", source.as_uri(), "mine.pth", digest(found)) == found
    found.write_bytes(b"weighty")
    with pytest.raises(RewardError, match=r"mine\.pth is damaged"):
        load.url_file("mine", "head", source.as_uri(), "mine.pth", hashlib.sha256(b"weights").hexdigest())
    with pytest.raises(RewardError, match=r"reward mine: other\.pth could not be downloaded .* set head to the file"):
        load.url_file("mine", "head", source.as_uri(), "other.pth", None)


def test_a_file_of_the_hub_is_held_against_the_digest_it_is_stored_under(tmp_path, monkeypatch):
    content = b"weights"
    blob = tmp_path / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    link = tmp_path / "weights.pt"
    link.symlink_to(blob)
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=lambda *_: str(link)))
    assert load.hub_file("mine", "weights", "org/repo", "weights.pt") == link
    blob.write_bytes(b"weighty")
    with pytest.raises(RewardError, match=r"weights\.pt is damaged"):
        load.hub_file("mine", "weights", "org/repo", "weights.pt")


def test_state_dicts_are_found_where_files_keep_them(tmp_path):
    from safetensors.torch import save_file

    state = {"a.weight": torch.ones(2, dtype=torch.float16), "a.count": torch.tensor(3)}
    for wrapped in (state, {"state_dict": state}, {"model": {f"module.{k}": v for k, v in state.items()}}):
        torch.save(wrapped, tmp_path / "x.pt")
        found = load.read_state(tmp_path / "x.pt")
        assert found.keys() == state.keys() and found["a.weight"].dtype == torch.float32
        assert found["a.count"].dtype == torch.int64
    save_file(state, tmp_path / "x.safetensors")
    assert load.read_state(tmp_path / "x.safetensors").keys() == state.keys()


def test_what_is_said_of_files_that_are_no_weights(tmp_path):
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "torn.safetensors").write_bytes(b"xx")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, said in (
        ("torn.pt", "cannot be read as weights"),
        ("torn.safetensors", "cannot be read as weights"),
        ("list.pt", "holds no state dict"),
    ):
        with pytest.raises(RewardError, match=rf"{name} {said}") as caught:
            load.read_state(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_torchscript_archive_is_refused_and_its_code_not_loaded(tmp_path, monkeypatch):
    """So are OpenAI's own files of CLIP."""
    file = tmp_path / "ViT-L-14.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 1)), file)
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("its code was loaded"))
    for read in (load.read_state, read_module):
        with pytest.raises(RewardError, match=r"ViT-L-14\.pt is a TorchScript archive.*openai/clip-vit-large"):
            read(file)
    with pytest.raises(RewardError, match="is a TorchScript archive"):
        Clip(ClipConfig(model=f"open_clip:ViT-L-14/{file}"))


def test_a_file_where_a_folder_belongs_is_told_how_it_is_named(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"PK")
    with pytest.raises(RewardError, match=r"weights\.pt is a file; give the folder .* open_clip:NAME/.*weights\.pt"):
        Clip(ClipConfig(model=str(tmp_path / "weights.pt")))


def test_keys_and_shapes_are_matched_strictly():
    network = nn.Linear(2, 1)
    state = {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}
    load.load_strictly(network, state, "file.pt")
    assert network.weight.tolist() == [[1, 1]]
    for wrong, said in (
        ({"weight": state["weight"]}, r"file\.pt is not a complete Linear: it has no weights for bias\."),
        (state | {"more": torch.ones(1)}, r"file\.pt is not a Linear: .* no place for, more\."),
        (state | {"bias": torch.ones(2)}, r"file\.pt: bias has shape \(2,\), Linear wants \(1,\)"),
    ):
        with pytest.raises(RewardError, match=said):
            load.load_strictly(network, wrong, "file.pt")


def test_the_cache_encodes_each_prompt_once_and_forgets_the_least_used():
    encoded = []

    def encode(prompt, device):
        encoded.append(prompt)
        return torch.full((4,), float(len(prompt)), requires_grad=True) * 2

    cache = PromptCache(encode, budget=2 * 16)
    cpu = torch.device("cpu")
    rows = cache(["a", "bb", "a"], cpu)
    assert rows[:, 0].tolist() == [2, 4, 2] and not rows.requires_grad and encoded == ["a", "bb"]
    cache(["a"], cpu)
    cache(["ccc"], cpu)  # "bb" is the least recently used
    cache(["a"], cpu)
    assert encoded == ["a", "bb", "ccc"] and cache.bytes == 32
    cache(["bb"], cpu)
    assert encoded == ["a", "bb", "ccc", "bb"]
    assert cache([f"p{k}" for k in range(9)], cpu).shape == (9, 4), "a batch larger than the budget is served"


def test_a_model_that_cannot_be_had_is_one_line_at_once(monkeypatch):
    from huggingface_hub import constants

    from rewards._load import load_tokenizer

    dead = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", dead)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", dead + "/{repo_id}/resolve/{revision}/{filename}")
    began = time.monotonic()
    with pytest.raises(RewardError, match=r"nobody/nothing could not be loaded: http://127.0.0.1:9 cannot be reached"):
        load_tokenizer("nobody/nothing")
    assert time.monotonic() - began < 10, "the library alone tries for a minute"
