"""Guidance with adapters of its own on the unprompted branch: what it equals, in a policy, a sample, a card, an arm."""

import json

import pytest
import torch
from align_toys import randomise
from evaluate_toys import make_runs, planned
from pair_toys import gradients, policy_on, prepared, write_pairs
from run_toys import summary

from align.commands import sample as command
from align.config import load_recipe
from align.errors import UserError
from align.models.sd import SDConfig, StableDiffusion
from align.objectives._base import Parts
from align.objectives.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig
from align.policy.branches import opposite
from align.policy.cast import Frozen, gather, of_guidance
from align.policy.lora import AdapterConfig
from align.policy.mix import Mixer
from align.policy.trainable import Adapter
from align.sampling import SamplingConfig, rollout
from align.share import card
from align.share.branches import put_on
from align.share.stock import stock
from samplers import Rng

PROMPTS = ["a red circle", "two stars"]


def test_the_other_branch_is_a_sum_of_its_own():
    assert opposite({"default": 1.0}, {"default": 1.0, "negative": 0.0}) is None
    assert opposite({"default": 0.5}, {"default": 0.4, "negative": 2.0}) == {"default": 0.2, "negative": 2.0}
    assert opposite({"default": 1.0}, {"negative": 0.0}) == {}  # the base
    assert opposite({}, {"default": 3.0}) is None


@pytest.fixture(scope="module")
def places(tiny_sd_factory, tmp_path_factory):
    """(folder of a negative adapter, folder of a positive one)."""
    folder = tmp_path_factory.mktemp("adapters")
    for number, name in enumerate(("negative", "positive")):
        model = StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory())
        adapter = Adapter(AdapterConfig(rank=2 + number), model.network, list(model.lora_targets), seed=number)
        randomise(adapter, seed=5 + number, scale=0.1)  # no seed of `policy_on`, or they were one adapter
        adapter.export(folder / name)
    return folder / "negative", folder / "positive"


def drawn(policy, role="train", **guidance):
    block = SamplingConfig(num_steps=3, guidance={"scale": 3.0, **guidance})
    return rollout(block, policy.model, policy.role(role), PROMPTS, Rng(0, [0, 1])).x0


@pytest.fixture
def policy(tiny_sd_factory, places):
    found = policy_on(tiny_sd_factory(), b_scale=0.1)
    gather(found, None, {"negative": Frozen(str(places[0]))})
    return found


def test_without_a_negative_part_it_is_plain_guidance_bit_for_bit(policy):
    plain = drawn(policy)
    said = {"source": "x", "adapters": {"default": 1.0, "negative": 0.0}}
    assert torch.equal(drawn(policy, negative=said), plain)
    other = {"source": "x", "adapters": {"default": 0.0, "negative": 1.0}}
    assert not torch.allclose(drawn(policy, negative=other), plain)
    assert torch.equal(drawn(policy, scale=1.0, negative=other), drawn(policy, scale=1.0))
    assert torch.equal(drawn(policy, negative=other), drawn(policy, negative=other))


def test_the_branch_is_the_merged_network_and_the_base_at_nothing(policy, tiny_sd_factory, places):
    adapters = {"default": 0.3, "negative": 0.7}
    found = drawn(policy, negative={"source": "x", "adapters": adapters})
    other = policy_on(tiny_sd_factory(), b_scale=0.1)
    with torch.no_grad():  # the unprompted network, merged for good
        merged = StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory())
        for name, layer in policy.model.network.named_modules():
            if hasattr(layer, "get_delta_weight"):
                module = merged.network.get_submodule(name)
                for adapter in adapters.keys() & layer.lora_A.keys():
                    module.weight += adapters[adapter] * layer.get_delta_weight(adapter)
    other.opposer = lambda role: merged.denoiser()
    torch.testing.assert_close(found, drawn(other), rtol=1e-4, atol=5e-6)
    base = StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory())
    other.opposer = lambda role: base.denoiser()
    said = {"source": "x", "adapters": {"default": 0.0, "negative": 0.0}}
    torch.testing.assert_close(drawn(policy, negative=said), drawn(other), rtol=1e-4, atol=5e-6)


def test_rows_that_skip_are_spared_and_a_gradient_passes_both_branches(policy):
    said = {"source": "x", "adapters": {"default": 0.5, "negative": 1.0}}
    policy.calls.forward = 0
    drawn(policy, negative=said)
    assert policy.calls.forward == 3 * 2 * 2
    drawn(policy, negative=said, skip="fraction", fraction=1 / 3)
    assert policy.calls.forward == 3 * 2 * 2 + 2 * 2 + 2 * 2
    block = SamplingConfig(num_steps=3, last_k=1, guidance={"scale": 3.0, "negative": said})
    role = policy.role("train")
    x0 = rollout(block, policy.model, role, PROMPTS, Rng(0, [0, 1]), grad=block.grad_policy()).x0
    found = torch.autograd.grad(x0.square().sum(), policy.adapter.parameters())
    assert all(g.abs().sum() > 0 for g in found)
    frozen = [p for n, p in policy.model.network.named_parameters() if ".negative." in n]
    assert frozen and not any(p.requires_grad for p in frozen)


def test_a_negative_is_trained_by_swapped_pairs(tiny_sd_factory, tmp_path):
    policy = policy_on(tiny_sd_factory())
    folder = write_pairs(tmp_path / "pairs")
    swapped = tmp_path / "swapped"
    write_pairs(swapped)
    lines = [json.loads(line) for line in (swapped / "pairs.jsonl").read_text().splitlines()]
    lines = [{**line, "winner": line["loser"], "loser": line["winner"]} for line in lines]
    (swapped / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    found = []
    for data, train in ((folder, "negative"), (swapped, "default"), (folder, "default")):
        objective = DiffusionDPO(DiffusionDPOConfig(train=train), Parts(policy.model, None, None, 0))
        found.append(gradients(policy, objective(policy, next(iter(prepared(policy, data))))))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-8)
    assert torch.nn.functional.cosine_similarity(found[0], found[2], dim=0) < 0.5


def test_a_run_that_trains_a_negative_shows_the_base_against_it(tiny_sd_factory):
    model = StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory())
    adapter = Adapter(AdapterConfig(rank=2), model.network, list(model.lora_targets), name="negative")
    randomise(adapter, scale=0.1)
    from align.policy.roles import Policy

    policy = Policy(model, adapter)
    gather(policy, None)
    said = {"adapters": {"negative": 1.0}}
    before, after = (drawn(policy, role, negative=said) for role in ("reference", "result"))
    assert torch.equal(before, drawn(policy, "reference")) and not torch.allclose(before, after)
    assert torch.equal(drawn(policy, "train", negative=said), drawn(policy, "train"))  # its own rollouts are plain


@pytest.fixture(scope="module")
def runs(tiny_sd_factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_runs(tiny_sd_factory(), folder)
    return folder


def test_the_cards_lines_and_the_runs_pipeline_draw_as_align_does(runs, tmp_path):
    recipe = load_recipe(
        str(runs / "one"),
        {"sampling.guidance_scale": 7.5, "sampling.guidance": {
            "scale": 2.0, "negative": {"source": str(runs / "two"), "adapters": {"default": 0.5, "negative": 1.0}}}},
        on_disk=False,
    )  # fmt: skip
    text = card.text(recipe, summary(findings={}))
    assert "which the pipeline has not" not in text
    lines = text.split("```python")[1].split("```")[0].splitlines()
    code = "\n".join(lines).replace("FOLDER_OF_THE_BASE_MODEL", str(runs / "model"))
    code = code.replace("THIS_FOLDER", str(runs / "one" / "adapter"))
    code = code.replace("FOLDER_OF_THE_NEGATIVE_ADAPTER", str(runs / "two" / "adapter"))
    code = code.replace("image = pipeline(", "image = draw(")
    x_T = Rng(0, [0]).normal("x_T", torch.empty(1, 4, 8, 8))

    def draw(*args, **told):
        return names["pipeline"](*args, latents=x_T, output_type="latent", **told)

    names: dict = {"draw": draw}
    exec(code.replace(".images[0]", ".images"), names)
    model = StableDiffusion(SDConfig(checkpoint=str(runs / "model")))
    denoiser = command._denoiser(model, recipe, runs / "one" / "adapter" / "pytorch_lora_weights.safetensors", 1.0)
    x0 = rollout(recipe.sampling, model, denoiser, ["a red circle"], Rng(0, [0]), x_T=x_T).x0
    torch.testing.assert_close(names["image"], x0, rtol=1e-3, atol=1e-4)
    again = StableDiffusion(SDConfig(checkpoint=str(runs / "model")))
    names["pipeline"] = again.to_pipeline()
    again.load_adapter(names["pipeline"], runs / "one" / "adapter")
    put_on(stock(recipe).put_on(names["pipeline"]), recipe, 1.0)
    torch.testing.assert_close(draw("a red circle").images, x0, rtol=1e-3, atol=1e-4)


def test_arms_name_the_branch_and_a_negatives_run_goes_where_it_belongs(runs, tmp_path):
    labels = [arm.label for arm in planned(runs, "RUNS/one", "RUNS/one~RUNS/two@0.5", "base~RUNS/two").cast.arms]
    assert labels == ["one x 1", "one x 1 ~ two x 0.5", "base ~ two x 1"]
    own = {"objective": {"name": "diffusion_dpo", "train": "negative"}, "rewards": {}}
    own["sampling"] = {"num_steps": 2, "guidance": {"scale": 2.0, "negative": {"adapters": {"negative": 0.8}}}}
    (runs / "npo" / "adapter").mkdir(parents=True, exist_ok=True)
    file = "pytorch_lora_weights.safetensors"
    (runs / "npo" / "adapter" / file).write_bytes((runs / "two" / "adapter" / file).read_bytes())
    tree = {**load_recipe(str(runs / "two"), on_disk=False).dump(), **own}
    (runs / "npo" / "recipe.yaml").write_text(load_recipe(tree, on_disk=False).yaml())
    found = planned(runs, "RUNS/npo", "RUNS/one+RUNS/npo@0.5", recipe=str(runs / "two"))
    assert [arm.label for arm in found.cast.arms] == ["base ~ npo x 0.8", "one x 1 ~ npo x 0.4"]
    with pytest.raises(UserError, match="draws without guidance"):
        planned(runs, "base~RUNS/two", changes=["sampling.guidance_scale=1"], recipe=str(runs / "two"))


def test_an_arm_draws_against_its_branch(runs):
    model = StableDiffusion(SDConfig(checkpoint=str(runs / "model")))
    mixer = Mixer(model.network, "unet")
    one, two = str(runs / "one"), str(runs / "two")
    mixer.add(one)
    mixer.add(two)
    mixer.set({one: 1.0})
    x, cond = torch.randn(1, 4, 8, 8), model.text.encode(["a star"])
    call = lambda: model.predict(model.network, x, torch.tensor(0.5), cond)  # noqa: E731
    with torch.no_grad():
        before = call()
        with mixer.entered({two: 0.5}):
            inside = call()
        assert torch.equal(call(), before) and not torch.allclose(inside, before)
        mixer.set({two: 0.5})
        assert torch.equal(call(), inside)


def test_what_cannot_work_is_one_line(tmp_path):
    def refused(message, **changes):
        with pytest.raises(UserError, match=message):
            load_recipe("diffusion_dpo/shapes", {"output": str(tmp_path / "run"), **changes})

    negative = {"adapters": {"negative": 1.0}}
    refused("sampling.guidance: does not say how the negative is used", **{"objective.train": "negative"})
    plain = {"sampling": {"num_steps": 2}}
    refused("source: is missing", **{**plain, "sampling.guidance": {"negative": negative}})
    gone = {"adapters": {"negative": 1.0}, "source": str(tmp_path / "none")}
    refused("source: .*there is no", **{**plain, "sampling.guidance": {"negative": gone}})
    refused("names positive", **{**plain, "sampling.guidance": {"negative": {"adapters": {"positive": 1.0}}}})
    with pytest.raises(UserError, match="Draw with one"):
        two = [SamplingConfig(guidance={"negative": {**negative, "source": s}}) for s in "ab"]
        of_guidance(type("Recipe", (), {"sampling": two[0], "evaluate": type("E", (), {"sampling": two[1]})}))
