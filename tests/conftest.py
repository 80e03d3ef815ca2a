"""Makes tests/ importable (tiny_sd and the like) and shares the tiny models that more than one room tests with."""

import pytest


@pytest.fixture(scope="session")
def tiny_sd_factory():
    """tiny_sd, with diffusers' advice switched off."""
    diffusers = pytest.importorskip("diffusers")
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    from tiny_sd import tiny_sd

    return tiny_sd
