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


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A small Hub that this process's huggingface_hub talks to, with a token and a cache of its own."""
    from hub_server import TOKEN, serving
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    with serving() as server:
        settings = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the waits between attempts
        close_session()
        yield server
        close_session()
