"""For the tests of every room of `align`: the toys beside this file are on the path, and say what differs."""

import pytest

pytest.register_assert_rewrite("several")
