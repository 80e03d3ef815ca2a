"""Scoring images on disk, in this process or spread over several.

An image's scores do not depend on the batch, the process or the order in which it is scored.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from align.errors import UserError
from align.evaluation.score_inputs import Row
from align.registry import REWARDS, RewardConfig, build
from rewards._images import ImageError, read_image

Scores = dict[str, float]
"""{label: score} of one row."""


def score(
    rows: Sequence[Row],
    rewards: Mapping[str, RewardConfig],
    *,
    batch_size: int = 16,
    device: str | None = None,
    done: Callable[[int], None] = lambda count: None,
    unread: Callable[[int, str], None] | None = None,
) -> list[Scores]:
    """The scores of every row, in this process; `done` is told how many more are finished.

    unread: is told of rows whose file is no picture, and why; their scores stay empty. None: the first one is an error.
    """
    import torch

    from rewards import Composite

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    composite = Composite({label: build(REWARDS, config) for label, config in rewards.items()}).to(place)
    scores: list[Scores] = [{} for _ in rows]
    for indices, images in _batches(rows, batch_size, unread):
        try:
            with torch.no_grad():
                terms = composite(images.to(place), [rows[i].prompt for i in indices])
        except ValueError as error:  # a prompt that a reward cannot take, or scores that are none
            raise UserError(f"{rows[indices[0]].image} to {rows[indices[-1]].image}: {error}") from error
        for label, values in terms.items():
            for i, value in zip(indices, values.tolist(), strict=True):
                scores[i][label] = value
        done(len(indices))
    return scores


def _batches(
    rows: Sequence[Row], batch_size: int, unread: Callable[[int, str], None] | None
) -> Iterator[tuple[list[int], Any]]:
    """(indices, images (B, 3, H, W)): consecutive rows as long as their sizes are the same."""
    import torch

    indices: list[int] = []
    images: list[Any] = []
    for i, row in enumerate(rows):
        try:
            image = read_image(row.image)
        except ImageError as error:
            if unread is None:
                raise UserError(str(error)) from None
            unread(i, str(error))
            continue
        if images and (len(images) == batch_size or image.shape != images[0].shape):
            yield indices, torch.stack(images)
            indices, images = [], []
        indices.append(i)
        images.append(image)
    if images:
        yield indices, torch.stack(images)


def default_processes() -> int:
    """One a GPU; one without any."""
    import torch

    return max(1, torch.cuda.device_count())


def score_in_processes(
    rows: Sequence[Row],
    rewards: Mapping[str, RewardConfig],
    *,
    num_processes: int,
    batch_size: int = 16,
    done: Callable[[int], None] = lambda count: None,
    unread: Callable[[int, str], None] | None = None,
) -> list[Scores]:
    """As `score`, the rows dealt out to processes of their own: one a GPU when there are any, else on the CPU."""
    import torch

    count = min(num_processes, len(rows))
    if count == 1:
        return score(rows, rewards, batch_size=batch_size, done=done, unread=unread)
    context = torch.multiprocessing.get_context("spawn")
    messages = context.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // count)
    bounds = [len(rows) * k // count for k in range(count + 1)]
    dumped = {label: config.model_dump() for label, config in rewards.items()}
    workers = []
    for k in range(count):
        part = [tuple(row) for row in rows[bounds[k] : bounds[k + 1]]]
        device = f"cuda:{k % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
        arguments = (k, part, dumped, batch_size, device, threads, messages, unread is not None)
        workers.append(context.Process(target=_work, args=arguments, daemon=True))
    for worker in workers:
        worker.start()
    found: dict[int, list[Scores]] = {}
    try:
        while len(found) < count:
            kind, k, value = _next_message(messages, workers)
            if kind == "done":
                done(value)
            elif kind == "error":
                raise UserError(value)
            elif kind == "unread" and unread is not None:
                unread(bounds[k] + value[0], value[1])
            else:
                found[k] = value
    finally:
        for worker in workers:
            worker.terminate() if len(found) < count else worker.join()
    return [scores for k in range(count) for scores in found[k]]


def _next_message(messages: Any, workers: Sequence[Any]) -> tuple[str, int, Any]:
    """The next message; a process that died without one is an error and not an endless wait."""
    while not messages._reader.poll(1.0):
        for worker in workers:
            if worker.exitcode not in (None, 0) and messages.empty():
                raise UserError(
                    f"a scoring process ended with exit code {worker.exitcode}. What it printed above says why; if it "
                    "ran out of memory, lower --batch-size."
                )
    return messages.get()


def _work(
    k: int, part: Any, dumped: Any, batch_size: int, device: str, threads: int, messages: Any, lenient: bool
) -> None:
    import torch

    from rewards._errors import RegistryError, RewardError

    torch.set_num_threads(threads)
    rows = [Row(*row) for row in part]
    try:
        configs: Any = {label: REWARDS.look_up(config) for label, config in dumped.items()}

        def report(count: int) -> None:
            messages.put(("done", k, count))

        def unread(row: int, why: str) -> None:
            messages.put(("unread", k, (row, why)))

        told = unread if lenient else None
        found = score(rows, configs, batch_size=batch_size, device=device, done=report, unread=told)
        messages.put(("scores", k, found))
    except (UserError, RewardError, RegistryError) as error:
        messages.put(("error", k, str(error)))
