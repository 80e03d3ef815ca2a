"""Two calls of align sample do not write into one folder at once: each would take the same free numbers."""

import pytest

from align.commands.sample import sample
from align.errors import UserError
from align.files import lock


def test_a_folder_that_another_draws_into_is_refused(tmp_path):
    with (
        lock.alone(tmp_path, "--output "),
        pytest.raises(UserError, match=r"--output .*process \d+ .*works in this folder"),
    ):
        next(sample("draft/shapes", ["a red circle"], output=tmp_path))
    assert not list(tmp_path.glob("*.png"))
