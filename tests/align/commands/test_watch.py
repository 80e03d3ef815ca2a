"""A run that is watched: what is said of it, by whom the page can be read, and that nothing is changed."""

import json
import re
import threading
import urllib.error
import urllib.request

import pytest
from PIL import Image
from typer.testing import CliRunner

from align.commands.app import app
from align.errors import UserError
from align.reports.live import look, page
from align.reports.live_server import Watch

NASTY = "<script>alert(1)</script>"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "samples").mkdir(parents=True)
    told = {"objective": {"name": "draft"}, "model": {"checkpoint": NASTY}, "train": {"num_updates": 40}}
    (folder / "recipe.yaml").write_text(json.dumps({**told, "rewards": {"clip": {}}}))
    records = [{"step": n, "reward/total": n / 10, "loss": 1 - n / 10, "seconds": 2.0} for n in range(1, 11)]
    records.insert(0, {"step": 0, "guard/score": 0.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + '{"step": 11, "rew')
    Image.new("RGB", (8, 8)).save(folder / "samples" / "step-000005.png")
    return folder


def test_what_is_said_while_it_trains(run):
    text = page(look(run), 5)
    assert '<meta http-equiv="refresh" content="5">' in text and "of 40 updates" in text and "1 min 0 s" in text
    assert NASTY not in text and "&lt;script&gt;" in text, "what files say is text"
    assert "update 5" in text and text.count("data:image/png") == 1 and not re.search(r"<script|https?://", text)
    (run / "summary.json").write_text("{}")
    assert "http-equiv" not in page(look(run), 5) and "Finished: " in page(look(run), 5)


def test_a_terminal_shows_numbers_and_curves(run):
    done = CliRunner().invoke(app, ["watch", str(run), "--once"])
    said = done.stdout.splitlines()
    assert done.exit_code == 0 and said[1].startswith("10 of 40 updates   2.00 s an update")
    (reward,) = [line for line in said if line.startswith("reward/total")]
    assert reward.endswith("▁▂▃▃▄▅▅▆▇█  0.1 -> 1") or ("▁" in reward and reward.endswith("0.1 -> 1"))
    assert any(line.startswith("loss") and "█" in line for line in said)


def test_what_follows_the_updates_is_said(run):
    (run / "metrics.jsonl").write_text(json.dumps({"step": 40, "seconds": 2.0, "loss": 1.0}) + "\n")
    said = CliRunner().invoke(app, ["watch", str(run), "--once"]).stdout
    assert "the updates are done; what is reported is drawn" in said.splitlines()[0] and " left" not in said
    assert "The updates are done; what is reported is drawn." in page(look(run), 5)
    (run / "summary.json").write_text("{}")
    done = CliRunner().invoke(app, ["watch", str(run), "-t"])
    assert done.exit_code == 0 and done.stdout.endswith("\n")


def test_what_is_no_run_is_one_line(tmp_path):
    done = CliRunner().invoke(app, ["watch", str(tmp_path)])
    assert done.exit_code == 2 and "no run's folder" in done.stderr and done.stderr.count("\n") == 1
    with pytest.raises(UserError):
        look(tmp_path / "gone")


def test_the_page_is_for_this_machine_and_only_to_be_read(run):
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    server = Watch(run, 5)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def status(address, **how):
        try:
            with urllib.request.urlopen(urllib.request.Request(address, **how), timeout=20) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, ""

    try:
        code, headers, text = status(server.address)
        assert code == 200 and "of 40 updates" in text
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; img-src data:")
        base = server.address.rsplit("/", 2)[0]
        assert status(base + "/guessed/")[0] == 403 and status(server.address + "recipe.yaml")[0] == 404
        assert status(server.address, headers={"Host": "evil.example"})[0] == 421
        assert status(server.address, data=b"{}", method="POST")[0] == 405
        assert server.server_address[0] == "127.0.0.1"
        run.rename(run.with_name("moved"))
        assert status(server.address)[0] == 410
        run.with_name("moved").rename(run)
    finally:
        server.shutdown()
        server.server_close()
    assert before == sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
