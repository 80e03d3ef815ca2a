"""Ctrl-C and SIGTERM as a request that the run answers at a moment of its choosing."""

import os
import signal
import threading
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator


class Interrupted(Exception):
    """Raised where a signal ends something that cannot be gone on with; the text is the signal's name."""


class Interrupt:
    """While entered, the first SIGINT or SIGTERM is only noted; a second one acts as it always does."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.signal: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def agreed(self) -> str | None:
        """The name of the signal if any process has had one, the same answer on all of them."""
        if self.accelerator.num_processes > 1:
            codes = torch.tensor(float(signal.Signals[self.signal].value if self.signal else 0))
            code = int(self.accelerator.gather(codes.to(self.accelerator.device)[None]).max())  # type: ignore[union-attr]
            self.signal = signal.Signals(code).name if code else None
        return self.signal

    def check(self) -> None:
        """Raises Interrupted on all processes if any has had a signal."""
        if name := self.agreed():
            raise Interrupted(name)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        if self.accelerator.is_main_process:
            os.write(2, f"{self.signal}: ends after what is under way; a second one ends at once\n".encode())
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned
        self._previous = {}
