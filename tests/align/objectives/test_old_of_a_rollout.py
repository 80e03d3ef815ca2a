"""A rollout that serves several updates: the role that drew its images stays as it was until the last of them."""

import pytest
import torch

import align
from align.training.checkpoint import Checkpoints, load

DATA = {"name": "groups", "prompts": ["a cat", "two"], "group_size": 2}


@pytest.mark.parametrize(("num_prompts", "moves"), [(2, [False, True, False, True]), (1, [True] * 4)])
def test_what_drew_a_rollout_moves_when_it_is_used_up(tiny_sd_factory, tmp_path, num_prompts, moves):
    """NFT's v_old must be the velocity of the policy that the images are of, in every update on them."""
    tiny_sd_factory().save_pretrained(tmp_path / "model")
    recipe = {
        "model": {"name": "sd", "checkpoint": str(tmp_path / "model")},
        "objective": {"name": "nft", "num_draws": 2, "old_rate": 0.2},
        "data": DATA | {"num_prompts": num_prompts},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 2, "guidance_scale": 1.0},
        "optim": {"lr": 1e-2},
        "train": {"num_updates": 4, "batch_size": 2, "checkpoint_every": 1, "keep_checkpoints": 9},
    }
    run = align.train(recipe, output=str(tmp_path / "run"))
    states = [load(path)[0] for path in Checkpoints(run.output / "checkpoints").steps()]
    before = {key: torch.zeros_like(value) for key, value in states[0]["adapter-old"].items() if "lora_B" in key}
    for step, (state, moved) in enumerate(zip(states, moves, strict=True), 1):
        decay = min(0.2 * step, 0.5) if moved else 1.0
        for key, value in before.items():
            expected = decay * value + (1 - decay) * state["trainable"][key.replace(".old.", ".default.")]
            torch.testing.assert_close(state["adapter-old"][key], expected, rtol=1e-5, atol=1e-7)
        before = {key: state["adapter-old"][key] for key in before}
