"""A run's folder: what lies in it is lost to nobody who has not said so."""

from pathlib import Path

import pytest

from align.errors import UserError
from align.run import RESULTS, WRITTEN
from align.training.folder import RunFolder
from align.training.trainer import EXPORTS


def finished(path, *, checkpoints=True):
    for name in ("adapter", *(("checkpoints",) if checkpoints else ())):
        (path / name).mkdir(parents=True)
    for name in ("recipe.yaml", "report.html"):
        (path / name).write_text("of an earlier run")
    (path / "metrics.jsonl").write_text('{"step": 1}\n')
    return path


def begin(path, checkpoint=None, resume="auto"):
    with RunFolder(path) as folder:
        folder.keeps(checkpoint, resume, RESULTS, WRITTEN)
        folder.open({}, "of this run", fresh=checkpoint is None, written=WRITTEN)


def test_a_finished_run_without_a_checkpoint_stays(tmp_path):
    finished(tmp_path)
    (tmp_path / "samples").mkdir()
    lost = r"\(adapter, report.html, samples, metrics.jsonl, checkpoints\)"
    with pytest.raises(UserError, match=rf"there is a run's work {lost}.*--resume never"):
        begin(tmp_path)
    (tmp_path / "summary.json").write_text('{"network_calls": 1}')
    with pytest.raises(UserError, match=r"a run has ended there \(adapter, report.html, summary.json, samples"):
        begin(tmp_path)
    assert (tmp_path / "recipe.yaml").read_text() == (tmp_path / "report.html").read_text() == "of an earlier run"
    begin(tmp_path, resume="never")
    assert (tmp_path / "recipe.yaml").read_text() == "of this run" and not (tmp_path / "adapter").exists()


def test_a_finished_run_is_not_mixed_with_another_ones_checkpoint(tmp_path):
    finished(tmp_path / "a"), finished(tmp_path / "b")
    own, other = (tmp_path / name / "checkpoints" / "step-000002" for name in ("a", "b"))
    with pytest.raises(UserError, match=r"step-000002 is another's. Set another output, or remove"):
        begin(tmp_path / "a", other, str(other))
    begin(tmp_path / "a", own)
    assert (tmp_path / "a" / "report.html").is_file()


def test_a_run_that_ended_before_its_first_checkpoint_starts_over(tmp_path):
    (tmp_path / "recipe.yaml").write_text("of an earlier run")
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / EXPORTS).mkdir()  # train.export_every may come first, as on a disk that was full
    begin(tmp_path)
    assert (tmp_path / "recipe.yaml").read_text() == "of this run"
    assert not (tmp_path / "metrics.jsonl").exists() and not (tmp_path / EXPORTS).exists()


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_recipe_of_the_users_own_is_not_written_over(tmp_path, resume):
    (tmp_path / "recipe.yaml").write_text("mine")
    (tmp_path / "samples").mkdir()
    with pytest.raises(UserError, match=r"output=.*: the recipe.yaml there is no run's.*Set output to another folder"):
        begin(tmp_path, resume=resume)
    assert (tmp_path / "recipe.yaml").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_of_two_runs_begun_at_once_the_second_removes_nothing_of_the_first(tmp_path):
    with RunFolder(tmp_path) as second:  # nothing there yet
        second.keeps(None, "auto", RESULTS)
        begin(tmp_path)  # the first, from its beginning to its end
        (tmp_path / "adapter").mkdir()
        with pytest.raises(UserError, match="another run has begun there since"):
            second.open({}, "of the second", fresh=True, written=RESULTS)
    assert (tmp_path / "adapter").is_dir() and (tmp_path / "recipe.yaml").read_text() == "of this run"


def test_the_folder_of_a_noise_search_is_no_runs(tmp_path):
    (tmp_path / "recipe.yaml").write_text("of align reno")
    (tmp_path / "images.jsonl").write_text("")
    with pytest.raises(UserError, match="is no run's"):
        begin(tmp_path, resume="never")


@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize("recipe", [True, False])
def test_a_folder_of_the_users_own_is_left_whatever_resume_says(tmp_path, resume, recipe):
    """Folders and files of a run's names, none of which a run has made."""
    for name in ("samples", "report", "adapter", "checkpoints"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.png").touch()
    for name in ("report.html", "before_after.png", *(("recipe.yaml",) if recipe else ())):
        (tmp_path / name).write_text("mine")
    (tmp_path / "summary.json").write_text('{"mine": 1}')
    (tmp_path / "metrics.jsonl").write_text('{"mine": 1}')
    before = sorted(tmp_path.rglob("*"))
    said = "no run's, and a run would write its own" if recipe else r"is no run's folder.*\(adapter, report.*samples"
    with pytest.raises(UserError, match=said) as found:
        begin(tmp_path, resume=resume)
    assert sorted(tmp_path.rglob("*")) == before and "\n" not in str(found.value)


def test_the_root_is_nobodys_run():
    with pytest.raises(UserError, match="output=/: is the root"):
        begin(Path("/"), resume="never")
