"""A served reward and the reward http over the loopback: the same scores, together, slow, failing, and refused."""

import json
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from align.evaluation.serve import Batcher, server
from align.registry import REWARDS, build
from align.shapes.captions import parse
from align.shapes.compose import compose
from align.shapes.prompts import prompts
from align.shapes.scene import render_batch
from rewards import Composite, RewardError
from rewards.http import Http, HttpConfig


@contextmanager
def serving(score, key="", **settings):
    batcher = Batcher(score, **settings)
    listening = server(batcher, "it", "127.0.0.1", 0, key)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}/v1", batcher
    finally:
        listening.shutdown()
        listening.server_close()
        batcher.close()


def client(url, **settings) -> Http:
    config = HttpConfig(url=url, model="it", answer="score", cache=None, backoff=0.01, **settings)
    return Http(config, sleep=lambda seconds: time.sleep(min(seconds, 0.01)))


def brightness(images, prompts):
    return images.mean((1, 2, 3)) + torch.tensor([1e-9 * len(prompt) - 3 for prompt in prompts])


@pytest.fixture
def images():
    return torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255


def test_scores_are_those_in_process_and_concurrent_requests_go_together(images):
    """A real reward: the eye, on renderings of its captions; negative scores and small ones keep all their digits."""
    import numpy as np

    captions = prompts("report", 12)
    rng = np.random.default_rng(0)
    pictures = render_batch([compose(parse(c), rng) for c in captions]).mul(255).round() / 255
    eye = Composite({"eye": build(REWARDS, REWARDS.look_up({"name": "eye", "form": "log"}))})
    with torch.no_grad():
        wanted = eye(pictures, captions)["eye"]
    with serving(lambda x, c: eye(x, c)["eye"], wait=0.3) as (url, batcher):
        found = client(url, concurrency=12)(pictures, captions)
        assert batcher.sizes and max(batcher.sizes) >= 4 and sum(batcher.sizes) == 12
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert wanted.std() > 1e-4 and (wanted < 0).any()
    with serving(brightness, batch=5) as (url, batcher):
        many = client(url, concurrency=4)(images, ["a", "bb", "ccc"] * 4)
        assert max(batcher.sizes) <= 5
    torch.testing.assert_close(many, brightness(images, ["a", "bb", "ccc"] * 4), rtol=0, atol=1e-6)


def test_images_of_other_sizes_are_scored_apart(images):
    with serving(brightness, wait=0.1) as (url, _), ThreadPoolExecutor(2) as pool:
        one = client(url)
        sizes = (images[:3], images[:3, :, :4])
        small, large = pool.map(lambda x: one(x, ["p"] * 3), sizes)
        torch.testing.assert_close(small, brightness(sizes[0], ["p"] * 3))
        torch.testing.assert_close(large, brightness(sizes[1], ["p"] * 3))


def test_a_slow_server_is_waited_for_no_longer_than_said(images):
    def slow(pixels, captions):
        time.sleep(0.4)
        return brightness(pixels, captions)

    with serving(slow) as (url, _):
        with pytest.raises(RewardError, match=r"did not answer within 0\.1 s.* asked 2 times"):
            client(url, timeout=0.1, retries=1)(images[:1], ["p"])
        torch.testing.assert_close(client(url, timeout=5)(images[:1], ["p"]), brightness(images[:1], ["p"]))


def test_a_reward_that_fails_is_asked_again_and_the_server_goes_on(images):
    calls = []

    def failing(pixels, captions):
        calls.append(len(pixels))
        if len(calls) < 3:
            raise RuntimeError("CUDA out of memory")
        return brightness(pixels, captions)

    with serving(failing) as (url, _):
        assert torch.isfinite(client(url, retries=4)(images[:1], ["p"])).all() and len(calls) == 3
        calls.clear()
        with pytest.raises(RewardError, match=r"answered 500: .*CUDA out of memory.* asked 1 times"):
            client(url, retries=0)(images[:1], ["p"])


def test_a_prompt_that_is_refused_spoils_no_other(images):
    """It is answered 400, which is not asked again; those that came with it have their scores."""

    def picky(pixels, captions):
        if "bad" in captions:
            raise ValueError("caption 'bad': is not understood.")
        return brightness(pixels, captions)

    with serving(picky, wait=0.2) as (url, batcher), ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(client(url), images[k : k + 1], [c]) for k, c in enumerate(("a", "bad", "b", "c"))]
        with pytest.raises(RewardError, match=r"answered 400: .*not understood.*asked 1 times"):
            asked[1].result()
        for k in (0, 2, 3):
            torch.testing.assert_close(asked[k].result(), brightness(images[k : k + 1], ["a"]), rtol=0, atol=1e-6)
        assert max(batcher.sizes) > 1


def test_a_key_is_asked_for(images, monkeypatch):
    monkeypatch.setenv("THE_KEY", "secret")
    monkeypatch.setenv("ANOTHER", "guess")
    with serving(brightness, key="secret") as (url, _):
        assert client(url, key="THE_KEY")(images[:1], ["p"]).shape == (1,)
        for wrong in ({}, {"key": "ANOTHER"}):
            with pytest.raises(RewardError, match="answered 401"):
                client(url, **wrong)(images[:1], ["p"])


def test_what_is_no_request_is_said(images):
    picture = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
    text = {"type": "text", "text": "p"}
    bodies = [
        ("no JSON", 400, "not JSON"),
        (json.dumps({}), 400, "no messages"),
        (json.dumps({"messages": [{"content": [text]}]}), 400, "1 texts and 0 images"),
        (json.dumps({"messages": [{"content": [text, picture]}]}), 400, "no data URL"),
    ]
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    bodies.append((json.dumps({"messages": [{"content": [text, broken]}]}), 400, "cannot be read"))
    foreign = {"type": "image_url", "image_url": {"url": "data:image/png;base64,é"}}
    bodies.append((json.dumps({"messages": [{"content": [text, foreign]}]}), 400, "cannot be read"))
    bodies.append(("[" * 200_000, 400, "not JSON"))
    with serving(brightness) as (url, batcher):
        for body, status, said in bodies:
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(urllib.request.Request(f"{url}/chat/completions", body.encode()))
            assert caught.value.code == status and said in json.loads(caught.value.read())["error"]["message"]
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{url}/else")
        assert caught.value.code == 404 and not batcher.sizes
        with urllib.request.urlopen(f"{url}/models") as answer:
            assert json.loads(answer.read())["data"][0]["id"] == "it"


def test_the_command_refuses_what_would_be_open_to_others(monkeypatch):
    from typer.testing import CliRunner

    from align.commands.app import app

    monkeypatch.delenv("NO_KEY", raising=False)
    cases = [
        (["brightness", "--host", "0.0.0.0"], "others could ask too"),
        (["brightness", "--key", "NO_KEY"], "no variable of the environment"),
        (["brightnes"], 'Did you mean "brightness"'),
        (["brightness", "--device", "gpu"], "--device gpu: is none"),
    ]
    for arguments, said in cases:
        result = CliRunner().invoke(app, ["serve-reward", *arguments])
        assert result.exit_code == 2 and said in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("device", ["cuda:99", "meta", "hpu", "nonsense"])
def test_a_device_that_is_not_here_is_said_before_a_reward_is_built(device, monkeypatch):
    from typer.testing import CliRunner

    from align.commands.app import app

    monkeypatch.setattr("align.registry.build", lambda *_: pytest.fail("built"))
    result = CliRunner().invoke(app, ["serve-reward", "brightness", "--device", device])
    assert result.exit_code == 2 and result.stderr.startswith(f"--device {device}: is ") and "cpu" in result.stderr
    assert result.stderr.count("\n") == 1
