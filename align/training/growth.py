"""Memory that grows from update to update: said while there is time, since a run that is killed for it says nothing."""

from collections.abc import Callable
from pathlib import Path

WINDOW = 20
"""Updates between two looks."""
LEAST = 64 * 2**20
"""Bytes in a window; caches and allocators move by less."""


class Growth:
    """Looks at the memory of this process; says once if it has grown in three windows in a row, and at that pace will
    run out before the run ends. `used` and `free` give bytes, or None on a machine that does not tell."""

    def __init__(
        self,
        num_updates: int,
        say: Callable[[str], None],
        used: Callable[[], int | None] | None = None,
        free: Callable[[], int | None] | None = None,
    ):
        self.num_updates, self.say = num_updates, say
        self.used, self.free = used or resident, free or available
        self.seen: list[int] = []
        self.said = False

    def watch(self, step: int) -> None:
        """After update number `step`."""
        if self.said or step % WINDOW or (now := self.used()) is None:
            return
        self.seen = [*self.seen, now][-4:]
        grown = [after - before for before, after in zip(self.seen, self.seen[1:], strict=False)]
        left = self.free()
        if len(grown) < 3 or min(grown) < LEAST or left is None:
            return
        pace = sum(grown) / (3 * WINDOW)
        if pace * (self.num_updates - step) > left:
            self.said = True
            self.say(
                f"memory grows by {pace / 2**20:.0f} MiB an update and will run out near update "
                f"{step + int(left / pace)}: a reward or a hook of your own keeps what it was given (tensors with "
                "their graph, lists that only grow). Checkpoints are kept; the same command goes on with fresh memory."
            )


def resident() -> int | None:
    """Bytes of this process in memory."""
    try:
        import resource

        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (ImportError, OSError, ValueError, IndexError):
        return None


def available() -> int | None:
    """Bytes that the machine can still give."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
