"""Messages that the documentation quotes are messages of the code."""

import ast
import re
from functools import cache

import pytest
from doc_pages import ROOT, blocks

QUOTING = ("docs/howto/troubleshooting.md", "docs/howto/own_reward.md")


@cache
def strings() -> tuple[str, ...]:
    """Every text of the packages, with ... for what is filled in."""
    found = []
    for package in ("align", "rewards", "samplers"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(v.value if isinstance(v, ast.Constant) else "..." for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return tuple(found)


def quoted() -> list[str]:
    return [
        line
        for page in QUOTING
        for block in blocks(page)
        if block.language == "text" and block.title is None
        for line in block.text.splitlines()
    ]


def said(message: str) -> bool:
    """Whether one text of the code holds all of the message's words between its gaps, in their order."""
    pattern = re.compile(".*".join(re.escape(part) for part in message.split("...")), re.DOTALL)
    return any(pattern.search(text) for text in strings())


@pytest.mark.parametrize("message", quoted())
def test_quoted_messages_exist(message):
    assert said(message)


def test_another_message_does_not():
    assert len(quoted()) > 6 and not said("the run has converged") and not said("there is no checkpoint ... diverged")
