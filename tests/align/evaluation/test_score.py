"""`align score` and `align rewards`: what they read, what they write, and what they say to a wrong input."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from align.commands import score as score_cli
from align.commands.app import app
from align.commands.rewards import default_settings
from align.config import load_recipe
from align.data.prompts import load_prompts
from align.errors import UserError
from align.evaluation.score import score, score_in_processes
from align.evaluation.score_inputs import find_images, pair, reward_configs
from align.registry import REWARDS
from rewards._card import UNKNOWN, is_open, licence_of
from rewards._images import read_image

PROMPTS = [f"picture {k}" for k in range(5)]
CLIP = "clip.model=embedded:shapes-clip"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures of two sizes, a prompt file in three formats, and things that are no images."""
    random = np.random.default_rng(0)
    for k in range(5):
        side = (24, 32) if k < 3 else (40, 24)
        Image.fromarray(random.integers(0, 40 + 40 * k, (*side, 3), dtype=np.uint8)).save(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text(PROMPTS[k])
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (tmp_path / "prompts.json").write_text(json.dumps({f"{k}.png": p for k, p in enumerate(PROMPTS)}))
    (tmp_path / "prompts.csv").write_text("image,prompt\n" + "".join(f"{k},{p}\n" for k, p in enumerate(PROMPTS)))
    (tmp_path / "notes.md").write_text("no image")
    return tmp_path


def run(*args: str):
    return CliRunner().invoke(app, ["score", *map(str, args)])


def luma(folder: Path, k: int | str) -> float:
    levels = np.asarray(Image.open(folder / f"{k}.png"), dtype=np.float64) / 255
    return float((levels @ [0.299, 0.587, 0.114]).mean())


def test_files_folders_and_globs(folder):
    everything = [str(folder / f"{k}.png") for k in range(5)]
    assert find_images([str(folder)]) == everything
    assert find_images([str(folder / "*.png")]) == everything
    assert find_images([str(folder / "*")]) == everything, "a glob takes images only"
    assert find_images([everything[3], str(folder)]) == [everything[3], *everything[:3], everything[4]]
    with pytest.raises(UserError, match=r"nowhere/\*\.png: there is no such image"):
        find_images([str(folder / "nowhere" / "*.png")])


@pytest.mark.parametrize("prompts", ["prompts.txt", "prompts.json", "prompts.csv", None])
def test_prompts_by_line_by_name_and_beside(folder, prompts):
    rows = pair(find_images([str(folder)]), None if prompts is None else str(folder / prompts))
    assert [row.prompt for row in rows] == PROMPTS
    assert [row.prompt for row in pair(["a.png", "b.png"], "a red star")] == ["a red star"] * 2


def test_a_picture_of_align_sample_knows_its_prompt(tmp_path):
    """As another program's "prompt" is a graph of nodes, that program's picture has none."""
    for name, more in (("ours.png", {"diffalign": "x"}), ("theirs.png", {})):
        info = PngInfo()
        for key, text in {"prompt": "a blue square", **more}.items():
            info.add_text(key, text)
        Image.new("RGB", (8, 8)).save(tmp_path / name, pnginfo=info)
    assert [row.prompt for row in pair([str(tmp_path / "ours.png")], None)] == ["a blue square"]
    with pytest.raises(UserError, match=r"theirs\.png: it has no prompt"):
        pair([str(tmp_path / "theirs.png")], None)


def test_a_score_is_the_rewards_whatever_the_batch_and_the_number_of_processes(folder):
    rows = pair(find_images([str(folder)]), None)
    configs = reward_configs(["brightness", "clip"], [CLIP])
    counts = []
    alone = score(rows, configs, batch_size=1, done=counts.append)
    assert sum(counts) == 5
    assert [found["brightness"] for found in alone] == pytest.approx([luma(folder, k) for k in range(5)], rel=1e-5)
    assert len({found["clip"] for found in alone}) == 5
    for other in (score(rows, configs, batch_size=8), score_in_processes(rows, configs, num_processes=2)):
        for found, wanted in zip(other, alone, strict=True):
            assert found == pytest.approx(wanted, rel=1e-4)


def test_table_csv_and_json_say_the_same(folder):
    texts = {}
    for form in ("table", "csv", "json"):
        done = run(folder, "--reward", "brightness", "symmetry", "--format", form, "--prompts", folder / "prompts.csv")
        assert done.exit_code == 0, done.output
        texts[form] = done.stdout
    rows = list(csv.DictReader(io.StringIO(texts["csv"])))
    assert [Path(row["image"]).name for row in rows] == [f"{k}.png" for k in range(5)]
    assert [row["prompt"] for row in rows] == PROMPTS
    assert float(rows[2]["brightness"]) == pytest.approx(luma(folder, 2), rel=1e-5)
    report = json.loads(texts["json"])
    assert [image["scores"]["symmetry"] for image in report["images"]] == [float(row["symmetry"]) for row in rows]
    mean = sum(float(row["symmetry"]) for row in rows) / 5
    assert report["mean"]["symmetry"] == pytest.approx(mean)
    lines = texts["table"].splitlines()
    assert lines[0].split() == ["image", "prompt", "brightness", "symmetry"] and len(lines) == 7
    assert lines[-1].split() == ["mean", "of", "5", f"{report['mean']['brightness']:.4f}", f"{mean:.4f}"]


def test_output_chooses_the_format_and_labels_are_ones_own(folder):
    settings = ("--reward", "sides=symmetry", "updown=symmetry", "--set", "updown.axis=vertical")
    done = run(folder, *settings, "-o", folder / "scores.json", "--prompts", "one for all")
    assert done.exit_code == 0 and done.stdout == ""
    report = json.loads((folder / "scores.json").read_text())
    assert report["mean"].keys() == {"sides", "updown"} and report["mean"]["sides"] != report["mean"]["updown"]
    assert {image["prompt"] for image in report["images"]} == {"one for all"}


def test_images_may_come_last(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "symmetry").mkdir()
    done = run("--prompts", "x", "--reward", "brightness", "symmetry", "0.png", "1.png", "--format", "csv")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == "image,prompt,brightness,symmetry", "a reward's name is one, also of a folder"
    assert [line.partition(",")[0] for line in done.stdout.splitlines()[1:]] == ["0.png", "1.png"]
    for images in (".", "*.png"):
        assert len(run("--reward", "brightness", images, "--format", "csv").stdout.splitlines()) == 6


def test_names_of_every_kind_and_one_name_in_two_folders(folder):
    for k, name in enumerate(("größe 猫 [1].png", "a/same.png", "b/same.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{k}.png").rename(folder / name)
    rows = pair(find_images([str(folder / "größe 猫 [1].png"), str(folder / "a"), str(folder / "b")]), "x")
    assert [Path(row.image).name for row in rows] == ["größe 猫 [1].png", "same.png", "same.png"]
    both = {"same": "one for both", "größe 猫 [1].png": "big", str(folder / "b" / "same.png"): "its own"}
    (folder / "names.json").write_text(json.dumps(both, ensure_ascii=False), encoding="utf-8")
    said = pair([row.image for row in rows], str(folder / "names.json"))
    assert [row.prompt for row in said] == ["big", "one for both", "its own"]
    done = run(
        *(row.image for row in rows), "--prompts", folder / "names.json", "--reward", "brightness", "--format", "csv"
    )
    assert [float(row["brightness"]) for row in csv.DictReader(io.StringIO(done.stdout))] == pytest.approx(
        [luma(folder, name) for name in ("größe 猫 [1]", "a/same", "b/same")], rel=1e-5
    )


def test_upright_and_over_white(folder):
    picture = Image.open(folder / "0.png")
    exif = picture.getexif()
    exif[0x0112] = 6  # taken with the camera on its side
    picture.save(folder / "turned.jpg", exif=exif, quality=100)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(folder / "clear.png")
    assert read_image(str(folder / "turned.jpg")).shape == (3, 32, 24)
    assert torch.equal(read_image(str(folder / "clear.png")), torch.ones(3, 8, 8))


WRONG = [
    (["nowhere.png", "--reward", "brightness"], r"nowhere\.png: there is no such image\. Give files"),
    (["{}", "--reward", "brightnes"], r'there is no reward "brightnes"\. Did you mean "brightness"'),
    (["{}", "--reward", "brightness", "--set", "brightness.wieght=1"], r'wieght: unknown key\. Did you mean "weight"'),
    (["{}", "--reward", "brightness", "--prompts", "{}/none.txt"], r"none\.txt: cannot be read \(No such file"),
    (["{}", "--reward", "brightness", "--prompts", "{}/two.txt"], r"two\.txt: 2 prompts for 5 images"),
    (["{}", "--reward", "brightness", "--prompts", "{}/bad.json"], r"bad\.json: line 1 is not JSON \(Expecting"),
    (["{}", "--reward", "brightness", "--prompts", "{}/some.json"], r"it has no prompt for .*1\.png\. Add a row"),
    (["{}/torn.bmp", "--reward", "brightness", "--prompts", "x"], r"torn\.bmp: is no image that can be read"),
    (["{}/5.webp", "--reward", "brightness"], r"5\.webp: it has no prompt\. Give --prompts"),
    (["{}", "--reward", "brightness", "--format", "xml"], r"--format xml: is none\. Choose table, csv or json"),
    (["{}", "--reward", "brightness", "-o", "{}/0.png/s.csv"], r"s\.csv: cannot be written \(.*0\.png is no folder\)"),
    (["{}", "--reward", "brightness", "-o", "{}/s.xlsx"], r"s\.xlsx: its ending says no format\. End it in \.csv"),
    (["{}/empty", "--reward", "brightness"], r"empty: no image \(png, .*in this folder\. .*empty/\*\*/\*"),
    (["{}", "--reward", "brightness,symmetry"], r"put blanks between rewards: --reward brightness symmetry\."),
    (["{}", "--reward", "clip", "clip"], r"clip is there already\. Give one a label of its own: mine=clip"),
    (
        ["{}", "--reward", "symmetry", "--set", "axis=both"],
        r"axis is no reward here\. Begin with one of: symmetry\.",
    ),
    (["{}", "--reward", "brightness", "--prompts", "{}/two.csv"], r"two\.csv: 0 has two prompts"),
    (["{}", "--reward", "brightness", "--prompts", "{}/short.csv"], r"short\.csv: line 2 has 1 cells and the header 2"),
    (["{}", "--reward", "python"], r"python\.function: is missing.* instances are such functions\."),
    (["{}", "--reward", "clip"], r"openai/clip-vit-large-patch14 could not be loaded"),
    (["{}", "--reward", "mps"], r"its weights are on no hub"),
    (["{}", "--reward", "judge", "--prompts", "x"], r"--prompts: reward judge cannot .*'x' is not understood"),
]


@pytest.mark.parametrize(("args", "said"), WRONG, ids=[" ".join(args[1:]) for args, _ in WRONG])
def test_a_wrong_input_is_one_line_and_exit_code_2(args, said, folder):
    (folder / "two.txt").write_text("a\nb\n")
    (folder / "bad.json").write_text("{")
    (folder / "some.json").write_text('{"0.png": "a"}')
    (folder / "two.csv").write_text("image,prompt\n0,a\n0,b\n")
    (folder / "short.csv").write_text("image,prompt\n0\n")
    (folder / "empty").mkdir()
    if "{}" not in args:
        (folder / "torn.bmp").write_text("BM")
        Image.new("RGB", (8, 8)).save(folder / "5.webp")
    done = run(*(arg.replace("{}", str(folder)) for arg in args))
    assert done.exit_code == 2, done.output
    assert re.search(said, done.stderr) and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stdout == ""


def test_an_error_in_a_process_of_its_own_is_one_line_too(folder):
    (folder / "9.png").write_text("torn")
    done = run(folder, "--reward", "brightness", "--prompts", "x", "--num-processes", "2")
    assert done.exit_code == 2 and re.search(r"9\.png: is no image", done.stderr), done.output
    assert len(done.stderr.splitlines()) == 1


def test_the_progress_bar_counts_on_a_terminal_and_is_silent_elsewhere(folder, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with score_cli._progress(3, shown=True) as done:
        done(2)
    assert "scoring" in terminal.getvalue() and "2/3" in terminal.getvalue()
    monkeypatch.undo()
    assert run(folder, "--reward", "brightness").stderr == ""


def test_every_reward_has_a_card_and_the_list_shows_it():
    listed = CliRunner().invoke(app, ["rewards"]).stdout.splitlines()
    assert listed[0].split() == ["reward", "gradient", "size", "memory", "licence", "range"]
    assert [line.split()[0] for line in listed[1:]] == REWARDS.names()
    for name, line in zip(REWARDS.names(), listed[1:], strict=True):
        config = default_settings(name)
        card = config.card
        assert card is not UNKNOWN and all((card.measures, card.range, card.size, card.hacking)), name
        assert card.partner in REWARDS.names() and card.partner != name, f"{name}: watch another reward"
        assert card.range in line and (" yes " in line) == config.has_gradient()
    one = CliRunner().invoke(app, ["rewards", "aesthetic_v25"]).stdout
    assert "AGPL-3.0 (aesthetic-predictor-v2-5)" in one and "watch:    clip" in one and "head" in one


RECIPE = {
    "model": {"name": "sd", "checkpoint": "embedded:shapes-sd"},
    "objective": "draft",
    "data": {"name": "prompts", "prompts": "shapes:train"},
}


def test_a_commercial_recipe_refuses_what_is_not_known_to_allow_it():
    fine = {"clip": {"model": "embedded:shapes-clip"}, "aesthetic": {}, "hpsv2": {}, "imagereward": {}, "symmetry": {}}
    assert load_recipe(RECIPE | {"rewards": fine, "licences": "commercial"}).licences == "commercial"
    bad = {"pickscore": {}, "aesthetic_v25": {}, "mine": {"name": "clip", "model": "/somewhere"}, "clip": {}}
    assert load_recipe(RECIPE | {"rewards": bad}).licences == "any"
    with pytest.raises(UserError) as caught:
        load_recipe(RECIPE | {"rewards": bad, "licences": "commercial"})
    lines = str(caught.value).splitlines()
    assert [re.findall(r"rewards\.(\w+)", line)[0] for line in lines] == ["aesthetic_v25", "mine", "pickscore"]
    assert "licence of aesthetic-predictor-v2-5 is AGPL-3.0" in lines[0] and "say what you know" not in lines[0]
    assert "licence of /somewhere is unstated" in lines[1] and "licence: MIT" in lines[1]
    bad = {"mine": {"name": "clip", "model": "/somewhere", "licence": "MIT"}}
    load_recipe(RECIPE | {"rewards": bad, "licences": "commercial"})
    watched = {"prompts": "shapes:report", "num_prompts": 16, "rewards": {"pickscore": {}}}
    with pytest.raises(UserError, match=r"evaluate\.rewards\.pickscore: the licence"):
        load_recipe(RECIPE | {"rewards": fine, "licences": "commercial", "evaluate": watched})


def test_licences_of_known_checkpoints():
    assert licence_of("openai/clip-vit-large-patch14") == "MIT" and is_open("MIT")
    assert licence_of("open_clip:ViT-H-14/laion2b_s32b_b79k") == "MIT"
    assert licence_of("open_clip:ViT-H-14/my.pt") == "unstated" and not is_open("unstated")
    assert not is_open("AGPL-3.0") and not is_open("CC-BY-NC-4.0")


def test_the_pages_say_of_every_reward_what_its_card_says():
    docs = Path(__file__).resolve().parents[3] / "docs"
    table, page = ((docs / room / "rewards.md").read_text(encoding="utf-8") for room in ("reference", "howto"))
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]* \| [^|]* \| [^|]* \| `\w+`) \|$", table, re.MULTILINE))
    headings = " ".join(re.findall(r"^### (.*)$", page, re.MULTILINE))
    for name in REWARDS.names():
        card = default_settings(name).card
        assert rows.pop(name) == f"{card.measures} | {card.range} | {card.hacking} | `{card.partner}`"
        assert f"`{name}`" in headings
    assert not rows


def two(folder: Path, *names: str) -> list[str]:
    """Pictures of these names, each as bright as its place."""
    folder.mkdir(exist_ok=True)
    for place, name in enumerate(names):
        Image.new("RGB", (8, 8), (40 * place + 20,) * 3).save(folder / name)
    return [str(folder / name) for name in names]


def test_prompts_are_read_as_every_command_reads_them(tmp_path, monkeypatch):
    images = two(tmp_path / "i", "0.png", "1.png")
    said = ["a red circle", "a blue, square"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in said))
    (tmp_path / "a.tsv").write_text("image\tprompt\n1\ta blue, square\n0\ta red circle\n")
    (tmp_path / "a.csv").write_text('prompt\na red circle\n"a blue, square"\n')
    for name in ("a.jsonl", "a.tsv", "a.csv"):
        assert [row.prompt for row in pair(images, str(tmp_path / name))] == said, name
    assert [row.prompt for row in pair(images, "shapes:report")] == load_prompts("shapes:report", count=2, key="")
    monkeypatch.chdir(tmp_path)
    for name in ("nowhere.csv", "./nowhere", "no/such/file", "notes.md", "shapes:repot", ""):
        with pytest.raises(UserError, match="--prompts"):
            pair(images, name)
    (tmp_path / "some.csv").write_text("image,prompt\n0,a\n,b\n")
    with pytest.raises(UserError, match="some rows name an image and some do not"):
        pair(images, "some.csv")


def test_a_mark_in_the_text_beside_changes_no_score_and_damage_is_named(tmp_path):
    images = two(tmp_path, "0.png", "1.png")
    (tmp_path / "0.txt").write_text("a red circle")
    (tmp_path / "1.txt").write_text("a red circle", encoding="utf-8-sig")
    assert {row.prompt for row in pair(images, None)} == {"a red circle"}
    (tmp_path / "1.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match=r"1\.txt: byte 3 \(line 1\) is not UTF-8"):
        pair(images, None)
    (tmp_path / "1.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"1\.txt: is empty"):
        pair(images, None)


def test_a_folder_is_read_in_the_order_of_its_numbers_without_hidden_files(tmp_path):
    two(tmp_path, "10.png", "2.png", "1.png", "11.png", ".hidden.png", "x9y10.png", "x9y2.png")
    (tmp_path / "._1.png").write_bytes(b"\0\5\26\7")
    (tmp_path / "folder.png").mkdir()
    wanted = ["1.png", "2.png", "10.png", "11.png", "x9y2.png", "x9y10.png"]
    assert [Path(image).name for image in find_images([str(tmp_path)])] == wanted
    assert [Path(image).name for image in find_images([str(tmp_path / "*.png")])] == wanted
    done = run(tmp_path, "--reward", "brightness", "--prompts", "x", "--format", "csv")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("processes", ["1", "2"])
def test_one_file_that_is_no_image_costs_the_others_nothing(folder, processes):
    (folder / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    out = folder / "s.csv"
    done = run(folder, "--reward", "brightness", "--num-processes", processes, "-o", out)
    assert done.exit_code == 2 and re.match(r".*3\.png: is no image that can be read", done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert [Path(row["image"]).name for row in csv.DictReader(out.open())] == ["0.png", "1.png", "2.png", "4.png"]


def test_scores_that_cannot_be_written_are_printed(folder, monkeypatch):
    def full(*_, **__):
        raise UserError("--output s.csv: cannot be written (No space left on device).")

    monkeypatch.setattr(score_cli, "write", full)
    done = run(folder, "--reward", "brightness", "-o", folder / "s.csv")
    assert done.exit_code == 2 and "No space left" in done.stderr
    assert len(list(csv.DictReader(io.StringIO(done.stdout)))) == 5


@pytest.mark.parametrize(("name", "said"), [("0.png/s.csv", "is no folder"), ("0.png/no/s.csv", "is no folder")])
def test_the_place_of_the_output_is_tried_before_any_scoring(folder, monkeypatch, name, said):
    from align.evaluation import score as scoring

    monkeypatch.setattr(scoring, "score", lambda *_, **__: pytest.fail("scored"))
    done = run(folder, "--reward", "brightness", "-o", folder / name)
    assert done.exit_code == 2 and said in done.stderr


def test_the_batch_may_be_called_as_other_commands_call_it(folder):
    said = [run(folder, "--reward", "brightness", option, 2).stdout for option in ("--batch-size", "--batch")]
    assert said[0] == said[1] != ""


def test_the_sheet_of_a_path_is_no_picture_of_its_own(tmp_path):
    for name in ("a.png", "a-path.png", "b-path.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert [Path(name).name for name in find_images([str(tmp_path / "*.png")])] == ["a.png", "b-path.png"]


def test_a_long_name_keeps_its_number_and_its_end():
    assert score_cli._short("reno/0003-a-red-circle-left-of-a-blue-square.png", 40, middle=True) == (
        "reno/0003-a-red-circ...a-blue-square.png"
    )
    assert score_cli._short("a" * 50, 40) == "a" * 37 + "..." and score_cli._short("a.png", 40, middle=True) == "a.png"
