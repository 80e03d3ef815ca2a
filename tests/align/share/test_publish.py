"""Publishing through the real huggingface_hub client to a small Hub: what arrives, and what is said when it fails."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_server import TOKEN, Repository
from run_toys import finished_run
from typer.testing import CliRunner

from align.commands.app import app
from align.config import load_recipe
from align.share import publish

REPO = "me/my-adapter"
NAMES = {
    "README.md", "pytorch_lora_weights.safetensors", "recipe.yaml", "summary.json", "before_after.png",
    "images/0000-before.png", "images/0000-after.png", "images/0001-before.png", "images/0001-after.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_sd_factory, tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("published"), tiny_sd_factory())


def align(*args, code=0):
    done = CliRunner().invoke(app, [str(a) for a in args])
    assert done.exit_code == code, done.output
    assert TOKEN not in done.output
    return done


def publishing(run, *args, code=0, repo=REPO):
    return align("publish", run, "--repo", repo, *args, code=code)


def line(done):
    """The last line on stderr, which must end the output: no traceback."""
    assert "Traceback" not in done.output
    return done.stderr.strip().splitlines()[-1]


def test_exactly_the_list_arrives_and_the_dry_run_is_the_same(hub, run, tmp_path):
    (run / "secret.txt").write_text("not in the list")
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints" / "state.json").write_text("{}")
    done = publishing(run)
    assert done.stdout.splitlines()[-1] == f"{hub.url}/{REPO}"
    repository = hub.repositories[REPO]
    assert repository.files.keys() - {".gitattributes"} == NAMES and not repository.private
    publishing(run, "--output", tmp_path / "look")
    written = {str(p.relative_to(tmp_path / "look")): p.read_bytes() for p in (tmp_path / "look").rglob("*.*")}
    assert written == {name: content for name, content in repository.files.items() if name != ".gitattributes"}
    assert (
        written["pytorch_lora_weights.safetensors"] == (run / "adapter/pytorch_lora_weights.safetensors").read_bytes()
    )
    assert hub.calls["object"] == 1  # the weights, as an LFS object


def test_the_dry_run_asks_nobody(hub, run, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    publishing(run, "--output", tmp_path / "look")
    assert "--output FOLDER writes it" in publishing(run, "--dry-run").stdout
    assert not hub.calls
    assert "something already" in line(publishing(run, "--output", tmp_path / "look", code=2))


def test_an_adapter_that_changes_nothing_is_published_with_a_word(run, tmp_path):
    assert "note:" not in publishing(run, "--output", tmp_path / "sound").stderr
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    told = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps(told | {"chosen_update": 0}))
    assert "is that of update 0 and changes nothing" in publishing(copy, "--output", tmp_path / "look").stderr


def test_no_folder_of_this_machine_is_published(run):
    files = {file.name: file.content for file in publish.compose(run, REPO)}
    for name in NAMES - {n for n in NAMES if n.endswith((".png", ".safetensors"))}:
        assert str(run.parent).encode() not in files[name], name
    recipe = yaml.safe_load(files["recipe.yaml"])
    assert recipe["model"]["checkpoint"] == "base" and "output" not in recipe
    assert load_recipe(recipe, on_disk=False).adapter.rank == 2
    assert "FOLDER_OF_THE_BASE_MODEL" in files["README.md"].decode()


def test_a_folder_is_hidden_where_it_is_one_and_not_inside_a_name(run, monkeypatch, tmp_path):
    (tmp_path / "app").mkdir()
    monkeypatch.setattr(publish.Path, "cwd", lambda: Path("/app"))
    hide = publish._hider(load_recipe(run / "recipe.yaml", on_disk=False), run)
    assert hide("by owner/app-x in /app, /app/runs: file:///app.") == "by owner/app-x in app, app/runs: file://app."
    assert str(run) not in hide(f"{run}/adapter")


def test_an_update_replaces_what_was_published_and_nothing_else(hub, run, tmp_path):
    publishing(run)
    hub.repositories[REPO].files |= {"notes.md": b"mine", "images/0007-after.png": b"of an earlier run"}
    publishing(run)
    files = hub.repositories[REPO].files
    assert files.keys() - {".gitattributes"} == NAMES | {"notes.md"}
    commits = len(hub.repositories[REPO].commits)
    publishing(run)  # nothing has changed: no commit
    assert len(hub.repositories[REPO].commits) == commits and hub.calls["object"] == 1


def test_private_is_asked_for_and_never_lost(hub, run):
    publishing(run, "--private")
    assert hub.repositories[REPO].private
    publishing(run)
    assert hub.repositories[REPO].private
    hub.repositories["me/open"] = Repository(files={".gitattributes": b""})
    said = line(publishing(run, "--private", code=2, repo="me/open"))
    assert said == (
        "--private: me/open is there already and is public. Make it private on the Hub, or choose another name."
    )
    assert hub.repositories["me/open"].files.keys() == {".gitattributes"}


@pytest.mark.parametrize("call", ["object", "commit", "preupload", "info", "create"])
def test_a_call_that_fails_once_is_made_again(hub, run, call):
    hub.failing[call] = [503]
    publishing(run)
    assert hub.repositories[REPO].files.keys() >= NAMES
    assert hub.calls[call] >= 2


def test_an_upload_that_ended_goes_on_without_sending_twice(hub, run):
    hub.failing["commit"] = [500] * 4
    said = line(publishing(run, code=2))
    assert said.startswith(f"{REPO}: the Hub cannot be reached (") and said.endswith("goes on where this one ended.")
    assert hub.calls["object"] == 1 and hub.repositories[REPO].files.keys() == {".gitattributes"}
    publishing(run)
    assert hub.calls["object"] == 1  # the weights were there
    assert hub.repositories[REPO].files.keys() >= NAMES


def test_an_upload_that_keeps_failing_is_one_line(hub, run):
    hub.failing["object"] = [500] * 100
    assert "the Hub cannot be reached" in line(publishing(run, code=2))
    assert hub.calls["commit"] == 0


def test_a_token_that_has_expired_is_one_clear_line(hub, run):
    hub.expired = True
    assert line(publishing(run, code=2)) == (
        f"{REPO}: the Hub does not accept the token (401): it has expired, was revoked or is mistyped. Log in again "
        "with `hf auth login`, or set HF_TOKEN to one that may write."
    )
    assert hub.calls["info"] == 1  # it is not tried again


def test_without_a_token_nothing_is_tried(hub, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert line(publishing(run, code=2)) == (
        "there is no token for the Hub. Log in with `hf auth login`, or set HF_TOKEN."
    )
    assert not hub.calls


def test_a_token_in_a_file_is_not_published(hub, run, tmp_path):
    files = [publish.File("recipe.yaml", f"key: {TOKEN}".encode())]
    from align.errors import UserError
    from align.share.upload import push

    with pytest.raises(UserError, match=r"^recipe\.yaml: holds your token") as raised:
        push(REPO, files)
    assert TOKEN not in str(raised.value) and not hub.calls


def test_a_name_that_is_taken_is_refused(hub, run):
    theirs = {"README.md": b"---\ntags: [llama]\n---\n# Something else\n", "model.safetensors": b"weights"}
    hub.repositories[REPO] = Repository(files=dict(theirs))
    assert line(publishing(run, code=2)) == (
        f"{REPO}: the name is taken by something that was not published from here. Choose another --repo, or give "
        "--overwrite if its card and adapter may be replaced."
    )
    assert hub.repositories[REPO].files == theirs
    publishing(run, "--overwrite")
    assert hub.repositories[REPO].files.keys() == NAMES | {"model.safetensors"}
    hub.taken.add("me/hidden")  # 404 to look at, 409 to make
    said = line(publishing(run, code=2, repo="me/hidden"))
    assert said.startswith("me/hidden: the name is taken, by a repository that you may not see (409).")


def test_what_may_not_be_is_said(hub, run, tmp_path):
    hub.failing["create"] = [403]
    assert "(403). Use one that may write to me's repositories." in line(publishing(run, code=2))
    for name in ("adapter", "a/b/c", "me/..", "me/a b", "../x/y"):
        assert "not a name on the Hub" in line(publishing(run, code=2, repo=name))
    assert "no finished run is here" in line(publishing(tmp_path, code=2))


def test_the_command_by_itself_obeys_the_hubs_environment(hub, run, tmp_path):
    """A process of its own, as a user has it: HF_ENDPOINT, HF_TOKEN, exit code 2, one line, no token."""
    hub.expired = True
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "align", "publish", str(run), "--repo", REPO]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 2 and hub.calls["info"] == 1
    assert len(done.stderr.strip().splitlines()) == 1 and "(401)" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert re.search(r"^ +[\d,]+  README.md$", done.stdout, re.MULTILINE)


def test_the_card_that_is_published_loads_the_adapter(tiny_sd_factory, tmp_path, monkeypatch):
    """The code block of the card, run as it stands on a base model that is on disk."""
    monkeypatch.chdir(tmp_path)
    files = {file.name: file.content for file in publish.compose(finished_run(tmp_path, tiny_sd_factory()), REPO)}
    code = files["README.md"].decode().split("```python\n")[1].split("```")[0]
    publish.write([publish.File(name, content) for name, content in files.items()], tmp_path / "look")
    code = code.replace("FOLDER_OF_THE_BASE_MODEL", str(tmp_path / "base")).replace(REPO, str(tmp_path / "look"))
    names = {}
    exec(code, names)
    assert names["image"].size == (32, 32)
    assert names["pipeline"].get_active_adapters() == ["align"]
    assert json.loads(files["summary.json"])["method"] == "draft"


@pytest.mark.parametrize(
    ("place", "kept"),
    [
        ("../clients/acme-secret/prompts.txt", "prompts.txt"),
        ("acme-secret/prompts.csv", "prompts.csv"),
        ("~/acme-secret/p.txt", "p.txt"),
        ("acme-secret/my_rewards.py:warmth", "my_rewards.py:warmth"),
        ("C:\\Users\\acme-secret\\p.txt", "p.txt"),
        ("./acme-secret", "acme-secret"),
    ],
)
def test_relative_places_are_cut_too(place, kept):
    from align.share.publish import _last, _places

    (found,) = _places(place)
    assert place.replace(found, _last(found)) == kept


@pytest.mark.parametrize(
    "text", ["owner/name", "a red and/or blue cat", "ByteDance/SDXL:net.safetensors", "shapes:train"]
)
def test_what_is_no_place_stays(text):
    from align.share.publish import _places

    assert list(_places(text)) == []


def test_licences_are_known_in_any_case():
    from align.share.card import HUB_LICENCES

    assert {"mit", "apache-2.0", "openrail++", "cc-by-nc-sa-4.0", "llama3.1"} <= HUB_LICENCES
