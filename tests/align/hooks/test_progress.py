"""The time left is told by the mean of the last updates, and of what stands between them, not by the last update."""

from types import SimpleNamespace

from align.hooks import progress
from align.hooks._base import State


def test_an_update_that_draws_for_several_does_not_tell_the_time_left(monkeypatch, capsys):
    """Rounds of 9 + 1 + 1 + 1 s: about 3 s an update, also after one of 9 s."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    around = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=True))
    bar = progress.ProgressBar(progress.ProgressConfig(), around)  # type: ignore[arg-type]  # all of it that is asked
    state = State(num_updates=20)
    bar.start(state)
    for step in range(1, 14):
        seconds = 9.0 if step % 4 == 1 else 1.0
        clock.now += seconds
        state.step, state.metrics = step, {"loss": 0.5, "seconds": seconds}
        bar.after_update(state)
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == "13/20  loss 0.5000  3.46 s an update  24 s left"  # (4 x 9 + 9 x 1)/13
    assert told[-2] == "9/20  loss 0.5000  3.67 s an update  40 s left"
