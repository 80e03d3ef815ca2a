"""CLIP-FlanT5 in `vqascore`: transformers' own classes and PIL in one straight line, on the same random weights."""

import json
import shutil

import pytest
import tiny_clip_t5
import torch
from reward_toys import noise, smooth, to_tensor
from torch.nn.functional import cross_entropy

from rewards import RewardError
from rewards.vqascore import VqaScore, VqaScoreConfig


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip_t5")
    return folder, *tiny_clip_t5.save(folder)


def reward(folder, **settings) -> VqaScore:
    told = {"tokenizer": str(folder / "tokenizer"), "dtype": "float32", **settings}
    return VqaScore(VqaScoreConfig(model=str(folder / "it"), **told))


def loss(made, image, question: str, answer: str) -> float:
    """t2v_metrics: the mean cross-entropy of the answer's tokens, </s> among them."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil

    folder, network, tower, bridge = made
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    processor = CLIPImageProcessorPil.from_pretrained(folder / "tower")
    colour = tuple(int(255 * mean) for mean in processor.image_mean)
    assert colour == (122, 116, 104)
    system = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    system += "detailed, and polite answers to the user's questions."
    first, second = f"{system} USER: <image>\n{question} ASSISTANT: ".split("<image>")
    pixels = processor(tiny_clip_t5.padded(image, colour), return_tensors="pt")["pixel_values"]
    labels = torch.tensor(tokenizer(answer).input_ids)
    with torch.no_grad():
        seen = bridge(tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:])
        parts = [network.shared(torch.tensor(tokenizer(text).input_ids)) for text in (first, second)]
        asked = torch.cat([parts[0], seen, parts[1]])[None]
        mask = torch.ones(asked.shape[:2])
        logits = network(inputs_embeds=asked, attention_mask=mask, labels=labels[None]).logits[0]
        logits = logits[:, : len(tokenizer)]  # t2v_metrics cuts the vocabulary to the tokenizer's
    return float(cross_entropy(logits, labels))


@pytest.mark.parametrize("size", [(40, 23), (31, 64)])
def test_the_score_is_that_of_the_published_code(made, size):
    image, question = noise(*size), 'Does this figure show "a red circle"? Please answer yes or no.'
    yes, no = (-loss(made, image, question, word) for word in ("Yes", "No"))
    own = reward(made[0])
    probability = own(to_tensor(image), ["a red circle"])[0].log()
    assert float(probability) == pytest.approx(yes, abs=1e-4)
    odds = float(reward(made[0], form="log_odds")(to_tensor(image), ["a red circle"])[0])
    assert odds == pytest.approx(yes - no, abs=1e-4) and abs(odds) > 1e-3
    other = own(to_tensor(smooth(*size)), ["a red circle"])[0].log()
    assert abs(float(other - probability)) > 1e-3, "an image that changes nothing would show nothing"


def test_an_answer_and_a_gradient(made):
    own, image = reward(made[0]), to_tensor(smooth(40, 23))
    found = own.answers(image, ["How many dogs?"], ["three"])
    wanted = -loss(made, smooth(40, 23), "How many dogs? Answer in one word.", "three")
    assert float(found[0].log()) == pytest.approx(wanted, abs=1e-4)
    pixels = (0.8 * image + 0.1).requires_grad_()
    (gradient,) = torch.autograd.grad(own(pixels, ["a"]).sum(), pixels)
    assert gradient.isfinite().all() and float(gradient.abs().max()) > 0


@pytest.mark.parametrize("key", ["lm_head.weight", "mm_projector.2.bias", "vision_tower.vision_tower.vision_model.x"])
def test_weights_are_read_strictly(made, tmp_path, key):
    folder = shutil.copytree(made[0] / "it", tmp_path / "it")
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())["weight_map"]
    file = folder / index.get(key, sorted(set(index.values()))[0])
    state = torch.load(file, weights_only=True)
    if state.pop(key, None) is None:
        state[key] = torch.zeros(1)
    torch.save(state, file)
    with pytest.raises(RewardError, match=key.rpartition(".")[2]):
        VqaScore(VqaScoreConfig(model=str(folder), tokenizer=str(made[0] / "tokenizer"), dtype="float32"))
