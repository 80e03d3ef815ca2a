"""Lines of how far an evaluation is, where no bar can be drawn."""

import time
from collections.abc import Callable

SPEAK_EVERY = 10.0  # seconds


class Pace:
    """Counts images, and now and then says how many there are, of how many, and how long the others take."""

    def __init__(self, total: int, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self.total, self.say, self.clock = total, say, clock
        self.number = self.drawn = 0
        self.arms: set[str] = set()
        self.began = self.spoken = clock()

    def done(self, arm: str, images: int) -> None:
        """`images` more of `arm` are there; of each arm first what an earlier evaluation has left."""
        now, self.number = self.clock(), self.number + images
        if arm not in self.arms:
            self.arms.add(arm)
            self.began = now if not self.drawn else self.began
            return
        self.drawn += images
        if now - self.spoken >= SPEAK_EVERY and self.number < self.total:
            self.spoken = now
            left = (self.total - self.number) * (now - self.began) / self.drawn
            self.say(f"{arm}: {self.number} of {self.total} images, about {_span(left)} left")


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
