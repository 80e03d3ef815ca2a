"""The http reward against a real server on loopback: what is asked, what is read, and everything that can go wrong."""

import math
import time

import pytest
import torch
from judge_server import judging

from rewards import Composite, RewardError
from rewards.http import Http, HttpConfig, likely

PROMPTS = ["a red circle", "two blue squares", "a star"]
KEY = "sk-very-secret"


@pytest.fixture
def judge():
    with judging() as server:
        yield server


@pytest.fixture
def images() -> torch.Tensor:
    return torch.stack([torch.full((3, 8, 8), level / 255) for level in (51.0, 128.0, 204.0)])


def reward(judge, tmp_path, waits=None, **config) -> Http:
    settings = {"url": judge.url, "model": "judge-7b", "cache": str(tmp_path / "answers"), "backoff": 0.5, **config}
    return Http(HttpConfig(**settings), sleep=(waits if waits is not None else []).append)


def test_the_probability_of_yes(judge, images, tmp_path):
    scores = reward(judge, tmp_path)(images, PROMPTS)
    assert scores.tolist() == pytest.approx([51 / 255, 128 / 255, 204 / 255], abs=1e-4)
    body = judge.asked[0]
    assert body["model"] == "judge-7b" and body["max_tokens"] == 1 and body["temperature"] == 0
    asked = {body["messages"][0]["content"][1]["text"] for body in judge.asked}
    assert asked == {f'Does this image show "{prompt}"? Answer with one word, yes or no.' for prompt in PROMPTS}


def test_a_number_in_the_answer(judge, images, tmp_path):
    found = reward(judge, tmp_path, answer="number", question="{prompt}: 0 to 10?")(images, PROMPTS)
    assert found.tolist() == pytest.approx([2.0, 5.0196, 8.0], abs=1e-3)


def test_every_image_is_asked_about_once(judge, images, tmp_path):
    """Also by another process's reward; another prompt, judge or question is another answer."""
    first = reward(judge, tmp_path)(images, PROMPTS)
    assert torch.equal(reward(judge, tmp_path)(images, PROMPTS), first) and len(judge.asked) == 3
    reward(judge, tmp_path)(images[:1], ["another"])
    reward(judge, tmp_path, model="judge-72b")(images[:1], PROMPTS[:1])
    reward(judge, tmp_path, question="{prompt}?")(images[:1], PROMPTS[:1])
    assert len(judge.asked) == 6
    for path in (tmp_path / "answers").rglob("*.json"):
        path.write_text(path.read_text()[:10])  # cut off
    assert torch.equal(reward(judge, tmp_path)(images, PROMPTS), first) and len(judge.asked) == 9
    fresh = reward(judge, tmp_path, cache=None)
    fresh(images, PROMPTS), fresh(images, PROMPTS)
    assert len(judge.asked) == 15


@pytest.mark.parametrize(
    "trouble",
    [
        (500, "overloaded"),
        (429, "slow down"),
        (200, "no JSON"),
        (200, {"choices": []}),
        (200, {"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"top_logprobs": []}]}}]}),
        (
            200,
            {"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": math.nan}]}]}}]},
        ),
    ],
)
def test_what_fails_or_makes_no_sense_is_asked_again_later_each_time(judge, images, tmp_path, trouble):
    judge.behave, waits = (lambda number: trouble if number <= 2 else None), []
    scores = reward(judge, tmp_path, waits)(images[:1], PROMPTS[:1])
    assert scores.tolist() == pytest.approx([0.2], abs=1e-4)
    assert len(judge.asked) == 3 and waits == [0.5, 1.0]


@pytest.mark.parametrize("text", ["I cannot judge this.", "It is 11 of 10", "-3"])
def test_a_number_out_of_range_or_none_is_no_answer(judge, images, tmp_path, text):
    judge.behave = lambda number: (200, {"choices": [{"message": {"content": text}}]})
    with pytest.raises(RewardError, match=r"no number within \[0, 10\].* asked 2 times") as caught:
        reward(judge, tmp_path, answer="number", retries=1)(images[:1], PROMPTS[:1])
    assert "\n" not in str(caught.value)


def test_what_asking_again_cannot_mend_ends_at_once(judge, images, tmp_path):
    judge.behave = lambda number: (401, "wrong\nkey")
    with pytest.raises(RewardError, match="answered 401: wrong key, for the prompt 'a red circle', asked 1 times"):
        reward(judge, tmp_path)(images[:1], PROMPTS[:1])


def test_a_server_that_is_slow_or_not_there(judge, images, tmp_path):
    judge.behave = lambda number: time.sleep(1.0)
    with pytest.raises(RewardError, match=r"did not answer within 0\.2 s.* asked 2 times"):
        reward(judge, tmp_path, timeout=0.2, retries=1)(images[:1], PROMPTS[:1])
    with pytest.raises(RewardError, match=r"cannot be reached .*refused"):
        reward(judge, tmp_path, url="http://127.0.0.1:9", retries=1)(images[:1], PROMPTS[:1])


def test_answers_that_came_before_a_failure_are_kept(judge, images, tmp_path):
    judge.behave = lambda number: (400, "no") if number == 3 else None
    with pytest.raises(RewardError):
        reward(judge, tmp_path, concurrency=1)(images, PROMPTS)
    judge.behave = lambda number: None
    reward(judge, tmp_path)(images, PROMPTS)
    assert len(judge.asked) == 4


def test_no_more_questions_are_open_at_once_than_allowed(judge, tmp_path):
    judge.behave = lambda number: time.sleep(0.05)
    many = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    reward(judge, tmp_path, concurrency=3)(many, ["x"] * 12)
    assert len(judge.asked) == 12 and 1 < judge.most <= 3


def test_the_key_comes_from_the_environment_and_is_told_nobody(judge, images, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setenv("MY_JUDGE", KEY)
    answers = f"bad key {KEY}", f"{'x' * 195} {KEY}"  # whole, and where an answer is cut
    judge.behave = lambda number: (400, answers[number - 2]) if number > 1 else None
    one = reward(judge, tmp_path, key="MY_JUDGE")
    one(images[:1], PROMPTS[:1])
    told = []
    for _ in answers:
        with caplog.at_level("DEBUG"), pytest.raises(RewardError, match="answered 400") as caught:
            one(images[1:2], PROMPTS[:1])
        told.append(str(caught.value))
    assert judge.keys == [f"Bearer {KEY}"] * 3
    told += [repr(one), one.config.model_dump_json(), caplog.text, *capfd.readouterr()]
    told += [path.read_text() for path in (tmp_path / "answers").rglob("*.json")]
    assert not any(KEY[:4] in text for text in told)


def test_a_key_that_no_header_can_hold(judge, images, tmp_path, monkeypatch):
    """Line breaks around it are no part of it: the client would quote it in its error, break and all."""
    monkeypatch.setenv("MY_JUDGE", f" {KEY}\r\n")
    one = reward(judge, tmp_path, key="MY_JUDGE")
    one(images[:1], PROMPTS[:1])
    assert judge.keys == [f"Bearer {KEY}"] and not list(one.config.conflicts({}))
    for broken in ("sk\nsk", "sk-\u00fc", "sk\x7f"):
        monkeypatch.setenv("MY_JUDGE", broken)
        ((place, text),) = one.config.conflicts({})
        assert place == ".key" and "cannot be sent" in text and broken not in text


def test_the_probability_of_a_benchmarks_answer(judge, images, tmp_path):
    """Each question as it stands; the answer's probability among all, however it is spelled; kept by the answer too."""
    one = reward(judge, tmp_path)
    questions = ["Is there a dog?", "Is there a cat?", "Are there dogs?"]
    found = one.answers(images, questions, ["Yes", "no", "Yes"])
    assert found.tolist() == pytest.approx([0.9 * 51 / 255, 0.9 * 127 / 255, 0.9 * 204 / 255], abs=1e-4)
    asked = {body["messages"][0]["content"][1]["text"] for body in judge.asked}
    assert asked == {f"{question} Answer in one word." for question in questions}
    assert torch.equal(one.answers(images, questions, ["Yes", "no", "Yes"]), found) and len(judge.asked) == 3
    assert float(one.answers(images[:1], questions[:1], ["no"])[0]) == pytest.approx(0.9 * 204 / 255, abs=1e-4)
    tokens = [{"token": " Three", "logprob": math.log(0.5)}, {"token": "3.", "logprob": math.log(0.25)}]
    assert likely(tokens, "three") == pytest.approx(0.75) and likely(tokens, "two") == 0


def test_a_recipe_is_told_what_is_missing(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    config = HttpConfig(url="http://x", model="m", key="NO_SUCH_KEY", range=(3, 1), question="{image}?")
    assert {key for key, _ in config.conflicts({})} == {".key", ".range", ".question"}
    assert not config.has_gradient()


def test_it_is_a_reward_like_others(judge, images, tmp_path):
    composite = Composite({"judge": reward(judge, tmp_path)})
    assert not composite.differentiable
    scores = composite(images.half().requires_grad_(), PROMPTS)["judge"]
    assert scores.dtype == torch.float32 and not scores.requires_grad
