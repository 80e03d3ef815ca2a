"""What an evaluation says where no bar can be drawn: how far it is, and how long the rest takes."""

from align.evaluation.pace import SPEAK_EVERY, Pace


def test_the_time_left_is_that_of_what_is_drawn_now():
    said, now = [], [0.0]
    pace = Pace(100, said.append, lambda: now[0])
    now[0] = 50.0  # the model loaded
    pace.done("base", 40)  # left by an earlier evaluation
    for _ in range(3):
        now[0] += SPEAK_EVERY
        pace.done("base", 10)
    assert said == [
        "base: 50 of 100 images, about 50 s left",
        "base: 60 of 100 images, about 40 s left",
        "base: 70 of 100 images, about 30 s left",
    ]
    pace.done("run", 0)
    now[0] += SPEAK_EVERY / 2
    pace.done("run", 10)
    assert len(said) == 3  # not yet again
    now[0] += 600
    pace.done("run", 10)
    assert said[3] == "run: 90 of 100 images, about 2 min left"
    pace.done("run", 10)
    assert len(said) == 4  # nothing is left
