"""For every test: the Hub is not asked (HF_HUB_OFFLINE=0 lets the tests marked network run), and tests/ is on the path
(tiny_sd and the like), with the tiny models that more than one room tests with."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_sd_factory():
    """tiny_sd, with diffusers' advice switched off."""
    diffusers = pytest.importorskip("diffusers")
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    from tiny_sd import tiny_sd

    return tiny_sd
