"""Several trainables in one run: their order, optimisers and rates, snapshots, resume; and a game with a known path."""

import pytest
import torch
from accelerate import Accelerator
from align_toys import Chase, StopAfter, fit, toy_policy, weights
from torch import nn

from align.data.prompts import Prompts, PromptsConfig
from align.objectives._base import Loss, Move
from align.policy.cast import Trained, gather
from align.policy.trainable import Module
from align.training import checkpoint
from align.training.checkpoint import Checkpoints
from align.training.optim import OptimConfig
from align.training.trainer import TrainConfig, Trainer


class Player(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def trainable(self):
        return Module(self, [self.value], lambda path: None)


class Game:
    """x minimises (x - 2 y)^2 / 2, then y maximises it as far as a quadratic lets it: y minimises (y + x)^2 / 2."""

    def __init__(self):
        self.x, self.y = Player(1.0), Player(-0.5)
        self.trainable = self.x.trainable()
        self.adapters = {"y": Trained(optim={"lr": 0.25}, max_grad_norm=None, module=self.y.trainable())}

    def moves(self, step):
        first = [Move("y", self.second), Move("y", self.second)] if step % 2 else [Move("y", self.second)]
        return [*first, Move("default", self.first)]

    def first(self, policy, batch, context=None):
        return self.loss((self.x.value - 2 * self.y.value) ** 2 / 2, batch)

    def second(self, policy, batch, context=None):
        return self.loss((self.y.value + self.x.value) ** 2 / 2, batch)

    def loss(self, value, batch):
        rows = value.expand(len(batch))
        return Loss(rows, torch.ones(len(batch)), {"x": self.x.value.detach(), "y": self.y.value.detach()})


def test_two_players_move_as_gradient_play_says(tmp_path):
    game, policy = Game(), toy_policy(0, rank=2)
    optim = OptimConfig(algorithm="sgd", lr=0.1, momentum=0, weight_decay=0)
    config = TrainConfig(num_updates=8, batch_size=4, micro_batch_size=3, max_grad_norm=None)
    trainer = Trainer(config, optim, Accelerator(cpu=True), tmp_path, recipe={}, say=print)
    batches = Prompts(PromptsConfig(prompts=["a"]), batch_size=4, seed=0)
    before = weights(policy)
    trainer.fit(game, policy, game.trainable, batches, cast=gather(policy, game))
    x, y = 1.0, -0.5
    for step in range(8):
        for _ in range(2 if step % 2 else 1):
            y -= 0.25 * (y + x)
        x -= 0.1 * (x - 2 * y)
    assert float(game.x.value) == pytest.approx(x, abs=1e-6) and float(game.y.value) == pytest.approx(y, abs=1e-6)
    assert torch.equal(weights(policy), before), "the adapter takes no part in this game"


def test_metrics_carry_the_trainables_name_and_each_its_own_rate(tmp_path):
    _, _, records = fit(tmp_path, objective=Chase(), optim={"lr": 1e-2, "schedule": "constant"}, num_updates=2)
    for record in records:
        assert record["lr"] == 1e-2 and record["fake/lr"] == 3e-2
        assert {"loss", "error", "grad_norm", "adapter_norm"} <= record.keys()
        assert {"fake/loss", "fake/error", "fake/grad_norm", "fake/adapter_norm"} <= record.keys()
        assert record["loss"] != record["fake/loss"]


def test_what_does_not_move_carries_no_gradient_and_asks_for_it_again_afterwards(tmp_path):
    seen = []

    class Watching(Chase):
        def flee(self, policy, batch, context=None):
            for name, adapter in policy.adapters.items():
                seen.append((name, {p.requires_grad for p in adapter.parameters()}))
            return super().flee(policy, batch)

    policy, _, _ = fit(tmp_path, objective=Watching(), num_updates=1)
    assert seen == [("default", {True}), ("fake", {False}), ("old", {False})]
    flags = {name: {p.requires_grad for p in adapter.parameters()} for name, adapter in policy.adapters.items()}
    assert flags == {"default": {True}, "fake": {True}, "old": {False}}
    assert all(p.grad is None for p in policy.adapters["old"].parameters())


def test_a_round_with_two_optimisers_resumes_bit_for_bit(tmp_path):
    whole, _, expected = fit(tmp_path / "whole", objective=Chase(), ema=0.5, adapter={"dropout": 0.2})
    _, _, before = fit(tmp_path / "cut", objective=Chase(), ema=0.5, adapter={"dropout": 0.2}, hooks=[StopAfter(3)])
    path = Checkpoints(tmp_path / "cut" / "checkpoints").newest()
    states, _ = checkpoint.load(path)
    assert {"trainable", "optimiser", "trainable-fake", "optimiser-fake", "adapter-old"} <= states.keys()
    again, _, after = fit(tmp_path / "cut", objective=Chase(), ema=0.5, adapter={"dropout": 0.2}, resume=path)
    assert torch.equal(weights(again), weights(whole)) and before + after == expected


def test_a_run_that_dies_in_the_middle_of_a_round_goes_on_from_the_round_before(tmp_path):
    class Dying(Chase):
        def flee(self, policy, batch, context=None):
            if batch.step == 3:
                raise RuntimeError("the power is gone")
            return super().flee(policy, batch)

    whole, _, _ = fit(tmp_path / "whole", objective=Chase())
    with pytest.raises(RuntimeError, match="the power is gone"):
        fit(tmp_path / "cut", objective=Dying())
    path = Checkpoints(tmp_path / "cut" / "checkpoints").newest()
    again, _, _ = fit(tmp_path / "cut", objective=Chase(), resume=path)
    assert path.name == "step-000002" and torch.equal(weights(again), weights(whole))


def test_a_move_without_a_finite_gradient_is_the_rounds_outcome(tmp_path):
    class Broken(Chase):
        def follow(self, policy, batch, context=None):
            loss = super().follow(policy, batch)
            return loss._replace(per_sample=loss.per_sample * float("nan")) if batch.step == 1 else loss

    _, _, records = fit(tmp_path, objective=Broken(), num_updates=3)
    assert [record["outcome"] for record in records] == ["applied", "not finite", "applied"]
