"""The stages' loop and what they keep: interrupted and resumed, it ends in the same weights; what was begun from other
weights is not gone on with."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))
from scripts.pretrain import common


def run(steps_until: int, folder: Path, monkeypatch) -> nn.Linear:
    monkeypatch.setattr(common, "WORK", folder)
    torch.manual_seed(0)
    net = nn.Linear(3, 2)

    def loss(step: int) -> torch.Tensor:
        if step == steps_until:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=common.generator(0, step))
        return (net(x) - x[:, :2]).pow(2).mean()

    common.train("toy", {"net": net}, loss, steps=30, lr=1e-2, warmup=5, save_every=10)
    return net


def test_resumed_equals_unbroken(tmp_path, monkeypatch):
    whole = run(-1, tmp_path / "a", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(17, tmp_path / "b", monkeypatch)
    assert torch.equal(run(-1, tmp_path / "b", monkeypatch).weight, whole.weight)


def test_what_was_begun_from_other_weights_or_data_is_no_state_of_this_stage(tmp_path, monkeypatch):
    """It was put in place of what the stage had been given, and a finished one was not trained at all."""
    monkeypatch.setattr(common, "WORK", tmp_path)

    def trained(weight: float, seen: float = 0.0) -> dict:
        net = nn.Linear(3, 2)
        nn.init.constant_(net.weight, weight), nn.init.zeros_(net.bias)

        def loss(step: int) -> torch.Tensor:
            return net.weight.square().sum() + net.bias.square().sum()

        return common.train("toy", {"net": net}, loss, steps=3, lr=1e-2, given={"seen": torch.tensor([seen])})

    whole = trained(1.0)
    assert whole["loss"] > 0 and trained(1.0) == whole, "what has ended says again what it reached"
    for other in ({"weight": 2.0}, {"weight": 1.0, "seen": 1.0}):
        with pytest.raises(SystemExit, match="other weights or data"):
            trained(**other)


def test_what_is_kept_is_of_these_models(tmp_path):
    made, net = [], nn.Linear(1, 1)

    def make() -> dict:
        made.append(len(made))
        return {"n": torch.tensor([made[-1]])}

    file = tmp_path / "samples.safetensors"
    assert [int(common.cached(file, [net], (6, "steps"), make)["n"]) for _ in range(2)] == [0, 0]
    with torch.no_grad():
        net.weight.add_(1)
    assert int(common.cached(file, [net], (6, "steps"), make)["n"]) == 1
    assert int(common.cached(file, [net], (7, "steps"), make)["n"]) == 2 and made == [0, 1, 2], "of other settings"
