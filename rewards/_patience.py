"""A call of somebody else's code that may take only so long."""

import threading
from collections.abc import Callable
from typing import Any

import torch


def within(call: Callable[[], Any], seconds: float, device: torch.device) -> Any:
    """What `call` returns or raises; a TimeoutError once it has taken `seconds`.

    It runs in a thread of its own, with this thread's gradient mode and device. One that does not end is left behind,
    and ends with the program.
    """
    gradient = torch.is_grad_enabled()
    answers: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with torch.set_grad_enabled(gradient):
                if device.type == "cuda":
                    torch.cuda.set_device(device)
                answers.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"did not answer within {seconds:g} s")
    return answers[0]
