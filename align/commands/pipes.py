"""What happens to a command whose reader has gone, as in `align train ... | head`: a listing ends, work goes on."""

import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


class Outliving(io.TextIOWrapper):
    """A stream of text over a file's own buffer; once nobody reads, what is written goes nowhere."""

    def write(self, text: str) -> int:
        return self._or_nowhere(super().write, text)

    def flush(self) -> None:
        self._or_nowhere(super().flush)

    def _or_nowhere(self, act: Callable[..., Any], *args: Any) -> Any:
        try:
            return act(*args)
        except BrokenPipeError:
            to_nowhere(self.fileno())
            return act(*args)


def to_nowhere(file: int) -> None:
    """What is written to an open file goes to the null device from now on."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, file)
    os.close(null)


def to_its_end(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose work is in files: it goes on without anybody who reads what it says."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for name in ("stdout", "stderr"):
                stack.enter_context(_outliving(name))
            return command(*args, **kwargs)

    return run


@contextmanager
def _outliving(name: str) -> Iterator[None]:
    stream = getattr(sys, name)
    try:
        stream.fileno()
    except (OSError, AttributeError, ValueError):  # no file, as in a test or a notebook
        yield
        return
    stream.flush()
    told = {"encoding": stream.encoding, "errors": stream.errors, "line_buffering": stream.line_buffering}
    ours = Outliving(stream.buffer, write_through=stream.write_through, **told)
    setattr(sys, name, ours)
    try:
        yield
    finally:
        ours.flush()
        ours.detach()
        setattr(sys, name, stream)
