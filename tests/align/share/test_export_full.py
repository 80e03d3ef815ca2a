"""A disk that is full in the middle of an export or of a published folder: one line, and nothing half-written."""

import resource
import signal
from pathlib import Path

import pytest
from test_export import run

from align.errors import UserError
from align.files.output import whole_folder
from align.share import publish
from align.share.export import export


@pytest.fixture
def small_files():
    """Sets the size, in bytes, above which the system takes no more of a file."""
    before, told = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, told)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("format", ["merged", "peft", "kohya"])
def test_a_full_disk_leaves_no_half_export(tiny_sd_factory, tmp_path, small_files, format, there):
    output, place = run(tmp_path, tiny_sd_factory()), tmp_path / "out"
    if there:
        place.mkdir()
    small_files(20_000)
    with pytest.raises(UserError, match=r"out.*: cannot be written \(File too large\)\. Make room") as found:
        export(output, format, place)
    assert "\n" not in str(found.value) and "/." not in str(found.value)
    assert place.exists() == there and not list(tmp_path.rglob("out/*"))
    small_files(resource.RLIM_INFINITY)
    written = export(output, format, place)
    assert written.exists() and not [path for path in place.iterdir() if path.name.startswith(".")]


def test_a_full_disk_leaves_no_half_of_what_is_published(tmp_path, small_files):
    files = [publish.File("README.md", b"x"), publish.File("images/a.png", b"x" * 5000)]
    small_files(1000)
    with pytest.raises(UserError, match=r"look/images/a\.png: cannot be written \(File too large\)"):
        publish.write(files, tmp_path / "look")
    assert not list(tmp_path.iterdir())
    small_files(resource.RLIM_INFINITY)
    assert all(path.is_file() for path in publish.write(files, tmp_path / "look"))


def test_the_place_is_tried_before_a_model_is_loaded(tiny_sd_factory, tmp_path, monkeypatch):
    output = run(tmp_path, tiny_sd_factory())
    (tmp_path / "file").touch()
    monkeypatch.setattr("align.share.export.build", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match=r"file/out: cannot be written .*is no folder.*Choose another folder"):
        export(output, "merged", tmp_path / "file" / "out")


@pytest.mark.parametrize("words", ["Error while serializing: I/O error: No space left on device (os error 28)", ""])
def test_what_a_library_says_of_a_full_disk_is_known_and_other_errors_stay(tmp_path, words):
    with pytest.raises(UserError if words else RuntimeError) as found, whole_folder(Path("~/no"), "--output") as place:
        assert "~" not in str(place)
        raise RuntimeError(words or "a mistake")
    assert "cannot be written (No space left on device)." in str(found.value) or not words
