"""As many processes as were started have joined, or the run is refused."""

import pytest

from align import processes
from align.errors import UserError


@pytest.mark.parametrize("name", processes.LAUNCHED)
def test_processes_that_did_not_join_are_refused(name, monkeypatch):
    for other in processes.LAUNCHED:
        monkeypatch.delenv(other, raising=False)
    assert processes.join().num_processes == 1
    monkeypatch.setenv(name, "1")
    assert processes.join().num_processes == 1
    monkeypatch.setattr(processes, "Accelerator", lambda **_: type("One", (), {"num_processes": 1})())
    monkeypatch.setenv(name, "2")
    with pytest.raises(UserError, match=f"{name}=2, but 1 joined"):
        processes.join()
