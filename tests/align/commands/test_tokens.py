"""Keys of the environment are in nothing that any command writes or says: files, screen, log records, pages.

`COMMANDS` holds a call of every command, in an order in which each finds what it needs; a command without one fails.
"""

import json
import logging
import threading
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer

import typer.main
from hub_server import TOKEN
from judge_server import judging
from typer.testing import CliRunner

from align.commands.app import app
from align.shapes.cli import app as shapes

SECRETS = {
    "HF_TOKEN": TOKEN,
    "HUGGING_FACE_HUB_TOKEN": "hf_older-name-4d1f0c2e7b9a",
    "the token file": "hf_in-a-file-9c0b7e2d5a1f",
    "WANDB_API_KEY": "wandb-e6b1c2d3f4a5968778695a4b",
    "OPENAI_API_KEY": "sk-openai-0f1e2d3c4b5a69788796",
    "MY_JUDGE": "sk-judge-a1b2c3d4e5f60718293a",
    "MY_SERVER": "sk-server-77aa88bb99cc00dd11ee",
}
LOGGERS = ("", "huggingface_hub", "httpx", "httpcore", "urllib3", "datasets", "diffusers", "transformers", "accelerate")
SCORE = "score run/images/strength-1 --prompts a --reward judge=http --set judge.url=URL --set judge.model=m"
SCORE += " --set judge.key=MY_JUDGE"
REPO = "me/mine"
COMMANDS = [
    ("train run.yaml --dry-run", 0),
    ("train run.yaml", 0),
    ("train run.yaml objective=nothing", 2),
    ("plan run.yaml", 0),
    ("sample run", 2),
    ("sample run a -n 2", 0),
    ("evaluate run -n 2 --images 1", 0),
    (SCORE, 0),
    ("report run", 0),
    ("watch run --once", 0),
    ("watch run", 0),
    ("vote run/images/strength-1", 0),
    ("serve-reward brightness --port 0 --key MY_SERVER", 130),
    ("export run -f kohya -o kohya", 0),
    (f"publish run --repo {REPO} --output up", 0),
    (f"publish run --repo {REPO}", 0),
    (f"pull {REPO} --trust-recipe", 0),
    ("pull me/nowhere", 2),
    ("pairs pairs.yaml", 0),
    ("cache pairs.yaml", 0),
    ("reno a --recipe reno.yaml --iterations 1 --seeds 1", 0),
    ("best-of a --recipe reno.yaml -n 1 --seeds 1", 0),
    ("redraw reno/0000-a.safetensors", 0),
    ("doctor", 0),
    ("init --model embedded:shapes-sd --goal people --gpu-memory 24", 0),
    ("recipes", 0),
    ("rewards http", 0),
    ("models sd", 0),
    ("components http", 0),
    ("schema", 0),
    ("shapes prompts --count 2", 0),
    ("shapes render drawn --count 2", 0),
    ("shapes judge drawn", 0),
]


def names():
    """Every command; those of `align shapes` with both words."""
    whole, part = typer.main.get_command(app).commands, typer.main.get_command(shapes).commands
    return {*whole, *(f"shapes {name}" for name in part)} - {"shapes"}


def called(line):
    words = line.split()
    return " ".join(words[: 2 if words[0] == "shapes" else 1])


def found(folder, texts):
    """[(a secret's name, where its first twelve letters stand)]."""
    data = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    data |= {f"said by {name}": text.encode() for name, text in texts.items()}
    heads = {name: value[:12].encode() for name, value in SECRETS.items()}
    return [(name, place) for place, content in data.items() for name, head in heads.items() if head in content]


def said(record):
    """A log record's text, with what it was made of and the traceback."""
    trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
    return f"{record.getMessage()} {record.args} {trace}"


def test_what_is_looked_for_is_found(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file.bin").write_bytes(b"\0\1" + SECRETS["MY_JUDGE"].encode() + b"\xff")
    texts = {name: f"it is {value[:12]}..." for name, value in SECRETS.items()}
    wanted = [(name, f"said by {name}") for name in SECRETS]
    assert found(tmp_path, texts) == [("MY_JUDGE", str(tmp_path / "below" / "file.bin")), *wanted]


def test_every_command_has_a_call():
    known = {called(line) for line, _ in COMMANDS}
    assert names() == known, "give a new command its line in COMMANDS"


def look_once(server, texts):
    """In place of a server that runs: it is asked once, with no key, a wrong one and the right one, then Ctrl-C."""
    place = getattr(server, "address", f"http://127.0.0.1:{server.server_port}/v1/models")
    for key in ("", "wrong", SECRETS["MY_SERVER"]):
        asked = urllib.request.Request(place, headers={"Authorization": f"Bearer {key}"} if key else {})

        def ask(asked=asked):
            try:
                with urllib.request.urlopen(asked, timeout=20) as answer:
                    texts[f"{place} {len(texts)}"] = f"{answer.headers}{answer.read().decode()}"
            except urllib.error.HTTPError as error:
                texts[f"{place} {len(texts)}"] = f"{error.headers}{error.read().decode()}"

        asking = threading.Thread(target=ask)
        asking.start()
        server.handle_request()
        asking.join()
    raise KeyboardInterrupt


def recipes(folder, url):
    """run.yaml with a judge behind a key and a tracker, pairs.yaml whose pairs that judge decides, and reno.yaml."""
    judge = {"judge": {"name": "http", "url": url, "model": "m", "key": "MY_JUDGE"}}
    prompts = ["a red circle", "two cats"]
    common = {"model": {"name": "sd", "checkpoint": str(folder / "model")}}
    common |= {"sampling": {"num_steps": 2, "guidance_scale": 1.0}, "train": {"num_updates": 2, "batch_size": 2}}
    (folder / "notes.py").write_text(
        "class Notes:\n"
        "    def __init__(self, output): self.file = output / 'notes.txt'\n"
        "    def start(self, configuration): self.file.write_text(repr(configuration))\n"
        "    def log(self, step, values): self.file.open('a').write(repr(values))\n"
        "    def finish(self): pass\n"
    )
    prompted = {"objective": "draft", "data": {"name": "prompts", "prompts": prompts}, "rewards": {"brightness": {}}}
    looks = {"prompts": prompts, "num_prompts": 2, "rewards": judge}
    hooks = {"samples": {"prompts": prompts, "num_images": 2}, "guard": looks | {"rewards": {"jpeg": {}}}}
    hooks |= {"metrics": {"trackers": [f"{folder / 'notes.py'}:Notes"]}, "panel": looks}
    make = {"prompts": prompts, "num_prompts": 2, "num_images": 2, "rewards": judge}
    written = {
        "run": prompted | {"hooks": hooks, "evaluate": looks | {"num_pictures": 2}, "output": "run"},
        "pairs": {"objective": "diffusion_dpo", "data": {"name": "preferences", "pairs": "pairs", "make": make}},
        "reno": prompted | {"objective": "reno"},
    }
    for name, tree in written.items():
        (folder / f"{name}.yaml").write_text(json.dumps(common | tree))


def test_no_key_is_in_anything_that_a_command_writes_or_says(
    hub, tiny_sd_factory, tmp_path, monkeypatch, capfd, caplog
):
    folder, texts = tmp_path / "here", {}
    tiny_sd_factory().save_pretrained(folder / "model")
    monkeypatch.chdir(folder)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("ALIGN_CACHE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub-cache"))
    (token := tmp_path / "token").write_text(SECRETS["the token file"])
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(token))
    records = []
    monkeypatch.setattr(logging.Logger, "callHandlers", lambda self, record: records.append(record))
    for name in LOGGERS:
        caplog.set_level(logging.DEBUG, logger=name)
    with judging() as judge:
        monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", lambda server, *_: look_once(server, texts))
        recipes(folder, judge.url)

        def call(line, code):
            done = CliRunner().invoke(app, line.replace("URL", judge.url).split())
            assert done.exit_code == code, f"{line}: {done.output} {done.exception!r}"
            texts[f"{len(texts)}: {line}"] = done.output

        for line, code in COMMANDS:
            call(line, code)
        judge.behave = lambda number: (401, f"wrong key {SECRETS['MY_JUDGE']}")
        call(SCORE.replace("--prompts a", "--prompts b"), 2)
        token.write_text(TOKEN)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name)
        call("publish run --repo me/by-file", 0)
        hub.says = f"malformed: Bearer {TOKEN}"
        for name in ("create", "info"):
            hub.failing[name] = [400] * 9
        call("publish run --repo me/refused", 2)
        call("pull me/by-file --trust-recipe", 2)
        hub.failing = {}
        hub.expired = True
        call("publish run --repo me/expired", 2)
        call("pull me/by-file --trust-recipe", 2)
    heard = capfd.readouterr()
    texts |= {"the screen": heard.out + heard.err, "the log": "\n".join(said(record) for record in records)}
    assert {REPO, "me/by-file"} <= hub.repositories.keys(), "the tokens were used"
    assert f"Bearer {SECRETS['MY_JUDGE']}" in judge.keys, "so was the judge's key"
    places = "run/adapter", "pulled", "pairs", "reno", ".cache/diffalign/answers", "hub-cache", "up", "kohya"
    assert len(records) > 50 and all(any((folder / place).rglob("*.*")) for place in places)
    leaks = found(folder, texts)
    assert not leaks, "\n".join(f"{name} in {place}" for name, place in leaks)
