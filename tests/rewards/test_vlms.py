"""Rewards by vision-language models, against transformers' own processor and network on the same random weights."""

import ast
import hashlib

import pytest
import torch
from PIL import Image
from reward_toys import noise, smooth, to_tensor

from rewards import Composite, RewardError
from rewards import hpsv3 as hpsv3_module
from rewards._qwen_pixels import QwenPixels
from rewards._vlm import Vlm
from rewards.hpsv3 import Hpsv3, Hpsv3Config, modern
from rewards.unifiedreward import UnifiedReward, UnifiedRewardConfig
from rewards.vqascore import VqaScore, VqaScoreConfig

QUESTION = 'Does this image show "a red circle"? Please answer yes or no.'


@pytest.fixture(scope="module")
def theirs(tiny_qwen):
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny_qwen)
    processor.image_processor = AutoImageProcessor.from_pretrained(tiny_qwen, backend="pil")
    return processor, AutoModelForImageTextToText.from_pretrained(tiny_qwen).eval()


def asked(processor, image: Image.Image, text: str, begun: str = ""):
    content = [{"type": "image"}, {"type": "text", "text": text}]
    chat = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(text=[chat + begun], images=[image], return_tensors="pt")


@pytest.mark.parametrize("size", [(32, 32), (22, 31), (90, 64), (8, 12)])
def test_pixels_are_those_of_the_image_processor(theirs, size):
    processor = theirs[0]
    for picture in (noise, smooth):
        image = picture(*size)
        wanted = processor.image_processor(image, return_tensors="pt")
        patches, grid = QwenPixels.from_hf(processor.image_processor.to_dict())(to_tensor(image))
        assert torch.equal(grid, wanted["image_grid_thw"])
        torch.testing.assert_close(patches, wanted["pixel_values"], rtol=0, atol=1e-5)


def test_what_the_network_is_asked_is_what_transformers_would_ask(tiny_qwen, theirs):
    processor, network = theirs
    own = Vlm(str(tiny_qwen), torch.float32)
    image = smooth(40, 28)
    wanted, found = asked(processor, image, QUESTION, "No"), own.inputs(to_tensor(image)[0], QUESTION, "No")
    assert set(wanted) == set(found)
    for key in ("input_ids", "attention_mask", "image_grid_thw", "mm_token_type_ids"):
        assert torch.equal(wanted[key], found[key].to(wanted[key].dtype)), key
    with torch.no_grad():
        logits = network(**wanted).logits[0, -1]
        torch.testing.assert_close(own.next_words(to_tensor(image)[0], QUESTION, "No"), logits, rtol=0, atol=1e-4)


def test_the_probability_of_yes(tiny_qwen, theirs):
    processor, network = theirs
    image = noise(32, 40)
    with torch.no_grad():
        logits = network(**asked(processor, image, QUESTION)).logits[0, -1]
    probabilities = logits.softmax(-1)
    encode = processor.tokenizer.encode
    yes, no = ({encode(w)[0] for w in (word, word.lower(), f" {word}")} for word in ("Yes", "No"))
    p_yes, p_no = (float(probabilities[sorted(ids)].sum()) for ids in (yes, no))
    forms = {"probability": p_yes, "ratio": p_yes / (p_yes + p_no), "log_odds": float(torch.tensor(p_yes / p_no).log())}
    for form, wanted in forms.items():
        config = VqaScoreConfig(model=str(tiny_qwen), form=form, dtype="float32")
        assert float(VqaScore(config)(to_tensor(image), ["a red circle"])[0]) == pytest.approx(wanted, abs=1e-4)


def test_the_probability_of_an_answer(tiny_qwen, theirs):
    """As the judge of a benchmark: the question as it stands, in one word; numbers also in digits."""
    processor, network = theirs
    image = smooth(32, 32)
    reward = VqaScore(VqaScoreConfig(model=str(tiny_qwen), dtype="float32"))
    found = reward.answers(to_tensor(image), ["How many dogs are in the image?"], ["three"])
    with torch.no_grad():
        text = "How many dogs are in the image? Answer in one word."
        probabilities = network(**asked(processor, image, text)).logits[0, -1].softmax(-1)
    ids = {processor.tokenizer.encode(word)[0] for word in ("three", "Three", "3", " three")}
    assert float(found[0]) == pytest.approx(float(probabilities[sorted(ids)].sum()), abs=1e-5)


def test_the_gradient_leads_upwards(tiny_qwen):
    reward = VqaScore(VqaScoreConfig(model=str(tiny_qwen), form="log_odds", dtype="float32")).double()
    image = (0.8 * to_tensor(smooth(32, 32)).double() + 0.1).requires_grad_()
    (gradient,) = torch.autograd.grad(reward(image, ["a"]).sum(), image)
    assert gradient.isfinite().all() and float(gradient.abs().max()) > 0
    step = 0.02 * gradient.sign()
    with torch.no_grad():
        assert float(reward(image + step, ["a"])) > float(reward(image, ["a"])) > float(reward(image - step, ["a"]))


def test_marks(tiny_qwen, theirs):
    processor, network = theirs
    image = noise(32, 32)
    config = UnifiedRewardConfig(model=str(tiny_qwen), dtype="float32")
    found = float(UnifiedReward(config)(to_tensor(image), ["a red circle"])[0])
    with torch.no_grad():
        inputs = asked(processor, image, config.question.format(prompt="a red circle"), "Final Score: ")
        logits = network(**inputs).logits[0, -1]
    digits = [processor.tokenizer.encode(d)[0] for d in "12345"]
    assert found == pytest.approx(float(logits[digits].softmax(0) @ torch.arange(1.0, 6)), abs=1e-4)
    with pytest.raises(RewardError, match="begin with one token"):
        UnifiedReward(config.model_copy(update={"levels": {"good": 1.0, "great": 2.0}}))


@pytest.mark.parametrize(("said", "mark"), [("It is fine.\nFinal Score: 4", 4.0), ("Final Score:3.5.", 3.5)])
def test_written_marks(tiny_qwen, said, mark):
    config = UnifiedRewardConfig(model=str(tiny_qwen), form="written", dtype="float32")
    reward = UnifiedReward(config)
    reward.vlm.said = lambda image, question: said
    assert float(reward(torch.zeros(1, 3, 8, 8), ["p"])[0]) == mark and not reward.differentiable
    for nonsense in ("Final Score: 7", "it is good", "Score 3"):
        reward.vlm.said = lambda image, question, n=nonsense: n
        with pytest.raises(RewardError, match="has no number from 1 to 5"):
            reward(torch.zeros(1, 3, 8, 8), ["p"])


def test_greedy_answers_are_transformers_own(tiny_qwen, theirs):
    processor, network = theirs
    image = noise(32, 32)
    inputs = asked(processor, image, "What?")
    with torch.no_grad():
        out = network.generate(**inputs, max_new_tokens=5, do_sample=False)
    wanted = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert Vlm(str(tiny_qwen), torch.float32).said(to_tensor(image)[0], "What?", 5) == wanted


def hpsv3_reward(tiny_qwen, **settings) -> Hpsv3:
    shared = {"model": str(tiny_qwen), "weights": str(tiny_qwen / "HPSv3.safetensors"), "head": 16, "area": 1024}
    shared |= {"instruction": str(tiny_qwen / "instruction.txt"), "dtype": "float32"}
    return Hpsv3(Hpsv3Config(**{**shared, **settings}))


def test_hpsv3_reads_the_head_at_its_token_with_plain_positions(tiny_qwen, theirs):
    """Written out: the whole network at positions 0, 1, 2, ... on all three axes, as the published code runs it."""
    from safetensors.torch import load_file

    processor, network = theirs
    image = smooth(40, 28)
    reward = hpsv3_reward(tiny_qwen)
    state = load_file(tiny_qwen / "HPSv3.safetensors")
    import copy

    whole = copy.deepcopy(network)
    processor = copy.deepcopy(processor)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    whole.resize_token_embeddings(len(processor.tokenizer))
    whole.load_state_dict(modern({k: v for k, v in state.items() if "rm_head" not in k}))
    processor.image_processor.size = {"shortest_edge": 1024, "longest_edge": 1024}
    inputs = asked(processor, image, "Prompt - a {curly} dog\nrate: <|Reward|>\n\nEND\n")
    places = torch.arange(inputs["input_ids"].shape[1]).expand(3, 1, -1)
    with torch.no_grad():
        states = whole(**inputs, position_ids=places, output_hidden_states=True).hidden_states[-1][0]
        at = states[inputs["input_ids"][0] == processor.tokenizer.convert_tokens_to_ids("<|Reward|>")]
        x = at @ state["rm_head.0.weight"].T + state["rm_head.0.bias"]
        x = x.relu() @ state["rm_head.3.weight"].T + state["rm_head.3.bias"]
        wanted = x.relu() @ state["rm_head.5.weight"].T + state["rm_head.5.bias"]
        found = reward(to_tensor(image), ["a {curly} dog"])
        rotated = whole(**inputs, output_hidden_states=True).hidden_states[-1][0]
    torch.testing.assert_close(found, wanted[:, 0], rtol=0, atol=1e-4)
    assert float((rotated - states).abs().max()) > 1e-2, "three-dimensional positions would be another score"


def test_hpsv3_is_loaded_strictly_and_its_instruction_checked(tiny_qwen, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    state = load_file(tiny_qwen / "HPSv3.safetensors")
    state.pop("rm_head.5.bias")
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(RewardError, match=r"no weights for 5\.bias"):
        hpsv3_reward(tiny_qwen, weights=str(tmp_path / "cut.safetensors"))
    source = tmp_path / "collator.py"
    source.write_text(
        'raise SystemExit\nINSTRUCTION = "say {text_prompt}"\nprompt_with_special_token = " <|Reward|>"\n'
    )
    with pytest.raises(RewardError, match="does not hold HPSv3's published instruction"):
        hpsv3_module.instruction(str(source))
    text = "say {text_prompt} <|Reward|>"
    monkeypatch.setattr(hpsv3_module, "DIGEST", hashlib.sha256(text.encode()).hexdigest())
    assert hpsv3_module.instruction(str(source)) == text and ast.parse(source.read_text())


def test_they_are_rewards_like_others_and_say_what_they_cannot(tiny_qwen, tiny_clip):
    images = to_tensor(smooth(32, 32)).requires_grad_()
    composite = Composite({"it": hpsv3_reward(tiny_qwen)})
    assert composite(images, ["a"])["it"].requires_grad
    with pytest.raises(RewardError, match="without gradient"):
        VqaScore(VqaScoreConfig(model=str(tiny_clip)))
