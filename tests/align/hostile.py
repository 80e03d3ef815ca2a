"""Files that nobody would write by hand, for test_hostile.py: texts, pictures, weights and folders, all broken.

ALIGN_EXAMPLES says how many of each kind are tried (20; `ALIGN_EXAMPLES=2000` before a release).
"""

import io
import json
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image

EXAMPLES = int(os.environ.get("ALIGN_EXAMPLES", "20"))
tried = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 20,
    database=None,
    suppress_health_check=list(HealthCheck),
)

WORDS = """model objective data rewards sampling train name prompts prompt winner loser image label clip draft sd
checkpoint embedded:shapes-sd << *a &a !!python/name:os null ~ 1e400 -.inf .nan ../../x 💥""".split()
WORDS += ["0x" + "f" * 30, "9" * 50, "\x00", "\u2028", "\ufeff"]
word = st.sampled_from(WORDS) | st.text(max_size=8)
scalar: Any = st.none() | st.booleans() | st.integers() | st.floats() | word
tree: Any = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(word, inner, max_size=4), max_leaves=12
)


@st.composite
def broken(draw: Any, whole: bytes) -> bytes:
    """A file's bytes after it was cut, and bytes of it were replaced, repeated, removed or put in."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(["cut", "flip", "insert", "remove", "repeat", "zero"]))
        if how == "cut":
            del data[place:]
        elif how == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "insert":
            data[place:place] = draw(st.binary(max_size=6))
        elif how == "remove":
            del data[place : place + draw(st.integers(1, 40))]
        elif how == "repeat":
            data[place:place] = data[place : place + 60] * 2
        else:
            data[place : place + 8] = bytes(8)
    return bytes(data)


def picture(format: str, mode: str, size: tuple[int, int] = (9, 7), **how: Any) -> bytes:
    """A picture's file."""
    data = io.BytesIO()
    Image.new(mode, size).save(data, format, **how)
    return data.getvalue()


def lines(*rows: Any) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
