"""A network cut over two processes by FSDP2 gives the run of one process; what cannot be cut is refused in a line."""

import json
import re
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from two_processes import together

import align
from align import processes, sharding
from align.config import load_recipe
from align.errors import UserError
from align.policy.lora import FILE_NAME, AdapterConfig
from align.policy.trainable import Adapter
from align.run import Run
from align.training.trainer import TrainConfig

WORKER = Path(__file__).with_name("sharded_worker.py")
PROMPTS = {"name": "prompts", "prompts": ["a red star", "two cats", "x"]}
GROUPS = {"name": "groups", "prompts": PROMPTS["prompts"], "group_size": 3, "rollout_size": 2}
PANEL = {"prompts": list("pqr"), "rewards": {"brightness": {}}, "best": "brightness", "every": 1}


def recipe(model, objective, sampling=None, data=None, **train):
    """Rows that are shared out unevenly, a panel, pictures of one process, a report: calls that do not meet."""
    return {
        "model": model,
        "objective": objective,
        "data": data or PROMPTS,
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 2, "guidance_scale": 2.0, **(sampling or {})},
        "optim": {"algorithm": "sgd", "lr": 1e-2},
        "train": {"num_updates": 1, "batch_size": 3, "micro_batch_size": 1, **train},
        "hooks": {"panel": PANEL, "samples": {"prompts": ["s"], "num_images": 1, "every": 1}},
        "evaluate": {"prompts": ["u", "v", "w"], "num_prompts": 3, "num_pictures": 1},
    }


@pytest.mark.slow
def test_two_processes_that_share_a_network_give_the_run_of_one(tiny_sd_factory, tmp_path, monkeypatch):
    """A UNet and a flow, a second role, block checkpoints, bf16 weights beside float32 adapters, and a resumed run."""
    from tiny_families import sd3

    from align.models.sd3 import StableDiffusion3

    tiny_sd_factory().save_pretrained(tmp_path / "unet")
    sd3.build(StableDiffusion3.published[0]).save_pretrained(tmp_path / "flow")
    unet = {"name": "sd", "checkpoint": str(tmp_path / "unet")}
    flow = {"name": "sd3", "checkpoint": str(tmp_path / "flow"), "t5_tokens": 16}
    told = {
        "draft": (
            recipe(unet, {"name": "draft", "num_noises": 1, "kl": 0.1}, {"last_k": 2}, num_updates=2, ema=0.5),
            [{"train.num_updates": 1}, {}],
        ),
        "blocks": (recipe({**flow, "checkpoint_blocks": True}, "draft", {"last_k": 2}), [{}]),
        "nft": (
            recipe(
                flow,
                {"name": "nft", "num_draws": 2, "old_rate": 0.2},
                {"guidance_scale": 1.0},
                GROUPS,
                batch_size=6,
                num_updates=2,
            ),
            [{}],
        ),
        "offload": (recipe({**flow, "offload": "group"}, "draft", {"last_k": 1}), [{}]),
        "bf16": (recipe({**unet, "dtype": {"network": "bf16"}}, "draft", {"last_k": 1}), [{}]),
    }
    (tmp_path / "recipes.json").write_text(json.dumps(told))
    (tmp_path / "two").mkdir()
    alone = {label: align.train(one, output=str(tmp_path / "one" / label)) for label, (one, _) in told.items()}
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    together(WORKER, tmp_path / "recipes.json", tmp_path / "two")
    for rank in range(2):
        for label, seen in json.loads((tmp_path / "two" / f"rank-{rank}.json").read_text()).items():
            assert seen["cut"] > 50 and all(".lora_" in name for name in seen["whole"]), label
            assert 0.4 < seen["share"] < 0.6
    for label, one in alone.items():
        near = 1e-3 if label == "bf16" else 1e-5
        two = Run(tmp_path / "two" / label)
        assert (one.report.num_processes, two.report.num_processes) == (1, 2)
        assert one.report.network_calls == two.report.network_calls
        for mine, whole in zip(two.metrics, one.metrics, strict=True):
            for key in whole.keys() - {"seconds", "outcome", "advantage", "rollout_seconds", "reward_seconds"}:
                assert mine[key] == pytest.approx(whole[key], rel=10 * near, abs=near), (label, key)
        for score, whole in zip(two.report.scores.values(), one.report.scores.values(), strict=True):
            assert score.after.mean == pytest.approx(whole.after.mean, rel=near)
        for file in (
            f"adapter/{FILE_NAME}",
            f"checkpoints/step-{one.recipe.train.num_updates:06d}/trainable.safetensors",
        ):
            mine, whole = (load_file(run.output / file) for run in (two, one))
            assert mine.keys() == whole.keys()
            for name, tensor in whole.items():
                torch.testing.assert_close(mine[name], tensor, rtol=near, atol=near)


@pytest.mark.parametrize("offload", [False, True])
def test_recomputed_calls_hold_one_block_and_give_the_whole_networks_gradient(tiny_sd_factory, offload):
    """Two calls, one after the other, each recomputed as a whole, and a third as another role, by a single process;
    without turns FSDP gathers a block ahead."""

    def gradient(network, adapter):
        torch.manual_seed(0)
        x, text, total = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 16), 0.0
        for number in range(2):
            x = x + checkpoint(lambda x, n=number: network(x, 10 * n, text).sample, x, use_reentrant=False)
            total = total + x.square().mean()
        with torch.no_grad(), adapter.disabled():
            other = network(x, 5, text).sample
        (total + (network(x.detach(), 5, text).sample - other).square().mean()).backward()
        return [p.grad for p in adapter.parameters()]

    def made():
        network = tiny_sd_factory().unet
        adapter = Adapter(AdapterConfig(rank=2), network, ["to_q", "to_v", "proj_in"])
        torch.manual_seed(1)
        for parameter in adapter.parameters():
            parameter.data.normal_(std=0.1)
        return network, adapter

    (whole, first), (network, second) = made(), made()
    cpu, patience = torch.device("cpu"), timedelta(minutes=1)
    held = []
    with sharding.released():
        found = sharding.units(network)
        sharding.shard(network, cpu, 1, patience, offload=offload)
        turns = None if offload else sharding.Turns(found, patience)
        for unit in found:
            unit.register_forward_pre_hook(lambda *_: held.append(sum(not sharding.cut(unit) for unit in found)))
        assert all(isinstance(p, DTensor) == (".lora_" not in name) for name, p in network.named_parameters())
        for mine, theirs in zip(gradient(network, second), gradient(whole, first), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)
        assert turns is None or turns.idle() is None
    assert not torch.distributed.is_initialized()
    assert len(held) > 40 and max(held) <= 5 < len(found), (len(held), max(held), len(found))


def test_blocks_are_cut_before_what_holds_them(tiny_sd_factory):
    network = tiny_sd_factory().unet
    found = sharding.units(network)
    assert found[-1] is network and {id(level) for level in (*network.down_blocks, *network.up_blocks)} < set(
        map(id, found)
    )
    place = {id(unit): number for number, unit in enumerate(found)}
    for unit in found:
        assert all(
            place[id(inner)] < place[id(unit)] for inner in unit.modules() if inner is not unit and id(inner) in place
        )


def test_processes_meet_by_way_of_those_who_wait_for_blocks():
    """A meeting that does not help the others with their calls first would leave them waiting; noise is never cut."""
    files = {path: path.read_text() for path in (WORKER.parents[2] / "align").rglob("*.py")}
    direct = re.compile(
        r"from accelerate.* import .*(gather|broadcast|reduce|pad_across)|(?<!import )torch.distributed"
    )
    found = {path.stem for path, text in files.items() if direct.search(text)}
    assert found == {"noise", "sharding"}


@pytest.mark.parametrize(
    "setting", [{"model.quantize": "int8"}, {"train.compile": True}, {"train.auto_micro_batch": True}]
)
def test_what_a_cut_network_cannot_is_refused(setting, monkeypatch):
    (key,) = setting
    told = load_recipe("draft/shapes", setting, on_disk=False)
    two = SimpleNamespace(num_processes=2)
    assert processes.shares(told, two) is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=f"{key}=.* do not go together"):
        processes.shares(told, two)
    with pytest.raises(UserError, match=f"model.offload: does not go with {key}="):
        load_recipe("draft/shapes", {"model.offload": "group", **setting})


def test_of_the_launcher_only_fsdp_of_version_2_is_followed_and_in_training_only(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match=r"asks for DeepSpeed .*recipes/accelerate/fsdp.yaml"):
        processes.join(TrainConfig(), cuts=True)
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="only `align train`"):
        processes.join(TrainConfig())
    with pytest.raises(UserError, match="fsdp_version: 2"):
        processes.join(TrainConfig(), cuts=True)
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(UserError, match="fsdp_offload_params"):
        processes.join(TrainConfig(), cuts=True)
