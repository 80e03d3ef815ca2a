"""A judge behind an HTTP endpoint: a vision-language model that is asked about each image, or a program like one.

    POST URL/chat/completions  {model, messages: [the question and the image], ...}        OpenAI's form of a chat
    yes      r = p(yes) / (p(yes) + p(no))  of the answer's first token                   (Lin et al., arXiv 2404.01291)
    number   r = the first number in the answer, within `range`
    score    r = the answer, the prompt being the question: of `align serve-reward`

rewards: {judge: {name: http, url: "http://localhost:8000/v1", model: Qwen/Qwen3-VL-8B-Instruct}}

Every image is asked about once: answers are kept on disk by the image, the prompt and the judge. What fails or makes no
sense is asked again, later each time, and in the end it is one line that says what came.
"""

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from rewards._answers import Answers, png
from rewards._base import Reward
from rewards._card import UNSTATED, Card
from rewards._config import RewardConfig
from rewards._errors import RewardError
from rewards._numerals import NUMERALS
from rewards._post import post


class HttpConfig(RewardConfig):
    name: Literal["http"] = "http"
    url: str = Field(pattern=r"^https?://")
    """The server's root, up to and without /chat/completions."""
    model: str
    """What the judge is called there."""
    question: str = 'Does this image show "{prompt}"? Answer with one word, yes or no.'
    """Asked of each image; {prompt} is its prompt."""
    answer: Literal["yes", "number", "score"] = "yes"
    """yes: the probability of that word, which the server must tell (logprobs); number: a number in the text; score:
    any number, from a reward that `align serve-reward` serves, which is asked the prompt itself."""
    range: tuple[float, float] = (0.0, 10.0)
    """number: what an answer must lie in; another is asked for again."""
    key: str | None = None
    """Name of the environment variable that holds the key, such as OPENAI_API_KEY; never the key."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds to wait for an answer."""
    retries: int = Field(default=4, ge=0)
    """How often a question is asked again before the run ends."""
    backoff: float = Field(default=1.0, ge=0)
    """Seconds before the first retry; twice as many before each further one, or what the server asks for."""
    concurrency: int = Field(default=8, ge=1)
    """Questions that are open at once."""
    cache: str | None = "~/.cache/diffalign/answers"
    """Folder of the answers so far; null: none is kept."""

    card = Card(
        measures="What a model or program behind an HTTP endpoint answers about an image.",
        range="[0, 1], or the number's range",
        size="on the server",
        hacking="Pictures that persuade: the words of the prompt written into them, or one manner that pleases.",
        partner="clip",
        licences={"the model on the server": UNSTATED},
    )

    def has_gradient(self) -> bool:
        return False

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        low, high = self.range
        if low >= high:
            yield ".range", f"is {list(self.range)}. Set it to two numbers, the lower one first."
        key = os.environ.get(self.key or "", "").strip()
        if self.key is not None and not key:
            yield ".key", f"{self.key} is no variable of the environment, or is empty. Set it to the server's key."
        if not (key.isascii() and (key + "x").isprintable()):
            yield ".key", f"{self.key} holds letters that cannot be sent in a header. Set it to the server's key."
        try:
            self.question.format(prompt="")
        except (KeyError, IndexError, ValueError):
            yield ".question", "has braces other than {prompt}. Write them double: {{ }}."


class Nonsense(Exception):
    """An answer that is none."""


class Http(Reward):
    """What the judge answers; higher is better. Images are sent as PNG."""

    Config = HttpConfig
    config: HttpConfig

    def __init__(self, config: HttpConfig, sleep: Callable[[float], None] = time.sleep):
        super().__init__(config, name=config.model)
        self._key = os.environ.get(config.key or "", "").strip()
        judge = [config.url, config.model, config.question, config.answer]
        self._answers = Answers(config.cache, judge)
        self._sleep = sleep

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        levels = (images.detach().float().clamp(0, 1) * 255).round().byte().cpu()
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            found = list(pool.map(self._score, levels, prompts))
        return torch.tensor(found, device=images.device)

    def answers(self, images: Tensor, questions: Sequence[str], expected: Sequence[str]) -> Tensor:
        """B images, a question each, and the answer that is right -> its probability (B,), by the server's logprobs."""
        levels = (images.detach().float().clamp(0, 1) * 255).round().byte().cpu()
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            found = list(pool.map(self._score, levels, questions, expected))
        return torch.tensor(found, device=images.device)

    def _score(self, levels: Tensor, prompt: str, expected: str | None = None) -> float:
        """One image (3, H, W), 8-bit; with `expected` the prompt is a question of its own."""
        asked = prompt if expected is None else f"{prompt} Answer in one word. [{expected}]"
        known = self._answers.get(levels, asked)
        if known is None:
            known = self._asked(png(levels), prompt, expected)
            self._answers.put(levels, asked, known)
        return known

    def _asked(self, picture: str, prompt: str, expected: str | None) -> float:
        config, what = self.config, ""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        url, body = f"{config.url.rstrip('/')}/chat/completions", self._body(picture, prompt, expected)
        for attempt in range(config.retries + 1):
            wait = config.backoff * 2**attempt
            try:
                reply = post(url, body, headers, config.timeout)
                if reply.status == 200:
                    return self._read(json.loads(reply.text), expected)
                what = f"answered {reply.status}: {' '.join(self._hidden(reply.text).split())[:200]}"
                if reply.status not in (408, 409, 429) and reply.status < 500:
                    break  # asking again would bring the same
                wait = min(reply.retry_after, 60.0) if reply.retry_after is not None else wait
            except TimeoutError:
                what = f"did not answer within {config.timeout:g} s"
            except OSError as error:
                what = f"cannot be reached ({error})"
            except (Nonsense, ValueError) as error:
                what = f"gave an answer without sense ({error})"
            if attempt < config.retries:
                self._sleep(wait)
        raise RewardError(
            f"reward {self.name}: {config.url} {self._hidden(what)}, for the prompt {prompt!r}, asked {attempt + 1} "
            "times. Look at the server, or raise rewards.*.retries; answers so far are kept."
        )

    def _hidden(self, text: str) -> str:
        """Without the key, before anything is cut off: a part of it would not be found."""
        return text.replace(self._key, "***") if self._key else text

    def _body(self, picture: str, prompt: str, expected: str | None) -> dict[str, Any]:
        image = {"type": "image_url", "image_url": {"url": picture}}
        text = prompt if self.config.answer == "score" else self.config.question.format(prompt=prompt)
        text = text if expected is None else f"{prompt} Answer in one word."
        question = {"type": "text", "text": text}
        body: dict[str, Any] = {"model": self.config.model, "temperature": 0}
        body["messages"] = [{"role": "user", "content": [image, question]}]
        if self.config.answer == "yes" or expected is not None:
            return body | {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
        return body | {"max_tokens": 64}

    def _read(self, reply: Any, expected: str | None) -> float:
        """The score in a reply, or the probability of what is expected."""
        try:
            choice = reply["choices"][0]
            if expected is not None:
                return likely(choice["logprobs"]["content"][0]["top_logprobs"], expected)
            if self.config.answer == "yes":
                return self._yes(choice["logprobs"]["content"][0]["top_logprobs"])
            text = choice["message"]["content"]
        except (KeyError, IndexError, TypeError):
            missing = "logprobs" if self.config.answer == "yes" or expected is not None else "text"
            raise Nonsense(f"no {missing} in it") from None
        if self.config.answer == "score":
            return _finite(text)
        found = re.search(r"[-+]?\d+(?:\.\d+)?", str(text))
        low, high = self.config.range
        if found is None or not low <= float(found[0]) <= high:
            raise Nonsense(f"no number within [{low:g}, {high:g}] in {' '.join(str(text).split())[:80]!r}")
        return float(found[0])

    def _yes(self, tokens: Sequence[Mapping[str, Any]]) -> float:
        said = {word: likely(tokens, word) for word in ("yes", "no")}
        total = sum(said.values())
        if not 0 < total < math.inf:
            raise Nonsense("neither yes nor no among its likeliest words")
        return said["yes"] / total


def likely(tokens: Sequence[Mapping[str, Any]], word: str) -> float:
    """The probability of a word among the likeliest tokens, however it is spelled; of a number also in digits."""
    ways = {word.strip().lower(), NUMERALS.get(word.strip().lower(), "")} - {""}
    said = [(str(token["token"]).strip().strip(".,!\"'").lower(), float(token["logprob"])) for token in tokens]
    return sum(math.exp(logprob) for text, logprob in said if text in ways)


def _finite(text: Any) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Nonsense(f"{text} is no score")
    return value
