"""Every code block of the README and of the docs: commands against the real command line, recipes loaded, Python run.

A page's blocks are tried in their order in one folder, where blocks with a file's name are those files.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from doc_commands import Incomplete, Wrong, check, commands, meant, parsed
from doc_pages import ROOT, Block, anchors, blocks, links, pages, prose, text, written
from doc_trainings import shortly

import align
from align.config import load_recipe
from align.plan import plan
from align.shapes.embedded import resolve
from align.source import Source

SHELL, DATA = ("bash", "", "shell", "console"), ("text", "json")
TESTED_ELSEWHERE = {
    "docs/develop/samplers.md": "tests/samplers/test_samplers_page.py runs its Python",
    "docs/develop/families.md": "tests/test_models_doc.py runs its family",
    "docs/howto/publish.md": "tests/test_publish_page.py runs the page",
    "docs/howto/evaluate.md": "tests/test_evaluate_doc.py runs the page",
}
NOT_REHEARSED = {
    "spo/shapes_spm": "needs the result of the command before it",
    "spm/shapes": "trains a CLIP beside the model, which no plan counts",
}
SAME = ("--dry-run", "output=", "train.seed=")
"""Change nothing of what is rehearsed."""
WALKED = {
    "CONTRIBUTING.md": "tests/docs/test_walks.py goes through it",
    "docs/howto/own_reward.md": "tests/docs/test_walks.py goes through it",
    "docs/howto/own_pairs.md": "tests/docs/test_walks.py goes through it",
}


def of(*languages: str) -> list[Block]:
    return [block for page in pages() for block in blocks(page) if block.language in languages]


def test_every_block_has_a_language_that_is_tried():
    known = {*SHELL, *DATA, "yaml", "python"}
    assert not [f"{block}: {block.language}" for block in of(*{b.language for p in pages() for b in blocks(p)} - known)]


@pytest.mark.parametrize("page", pages())
def test_commands(page, tmp_path, monkeypatch):
    written(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    wrong = []
    for block in (block for block in blocks(page) if block.language in SHELL):
        for words in commands(block.text, only_known=block.language == ""):
            try:
                check(words, text(page), on_disk=not NOT_REHEARSED.keys() & set(words))
            except Wrong as error:
                wrong.append(f"{block}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", pages())
def test_commands_within_the_text(page):
    """`align x --option` in a sentence or a table: the command and its options exist."""
    wrong = []
    for code in re.findall(r"`(align [^`]+)`", prose(page)):
        try:
            parsed([word for word in next(commands(code.replace("\n", " ")))[1:] if word != "..."])
        except Incomplete:
            continue  # a sentence may leave arguments out
        except Wrong as error:
            wrong.append(str(error))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", sorted({block.page for block in of("yaml")}))
def test_recipes(page, tmp_path, monkeypatch):
    """A whole recipe loads; a part of one loads in the place of the same part of a recipe of its method."""
    written(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    folder, stem = ROOT / "recipes", Path(page).stem
    base = folder / (stem if (folder / stem / "shapes.yaml").is_file() else "draft") / "shapes.yaml"
    for block in (block for block in blocks(page) if block.language == "yaml"):
        tree = yaml.safe_load(block.text)
        whole = {"model", "objective", "data"} <= tree.keys()
        load_recipe(Source.read(base).tree | tree if not whole else block_file(block, tmp_path))


def block_file(block: Block, folder: Path) -> Path:
    path = folder / (block.title or "recipe.yaml")
    path.write_text(block.text, encoding="utf-8")
    return path


@pytest.mark.parametrize("page", sorted({b.page for b in of("python")} - TESTED_ELSEWHERE.keys() - WALKED.keys()))
def test_python(page, tmp_path, monkeypatch):
    """Blocks that are no files run, one after the other, with trainings of two updates; published models are stood in
    for by the embedded one, and a run's folder by that of such a training."""
    written(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(align, "train", shortly(align.train), raising=False)
    names: dict[str, Any] = {}
    for block in (block for block in blocks(page) if block.language == "python"):
        scope = names if block.title is None else {"__name__": Path(block.title).stem}
        exec(compile(stood_in(block.text), str(block), "exec"), scope)


def stood_in(code: str) -> str:
    for folder in re.findall(r'load_lora_weights\("([^"]+)/adapter"', code):
        align.train("draft/shapes", output=folder)
    code = re.sub(r'from_pretrained\("[^"]+"', f'from_pretrained("{resolve("embedded:shapes-sd")}"', code)
    code = re.sub(r'("train\.num_updates"): \d+', r"\1: 2", code)
    return code.replace('"cuda"', '"cpu"').replace("torch.float16", "torch.float32")


def trained() -> list[str]:
    """The recipes, with overrides, that the pages train on the embedded models; those as they are of which
    tests/align/test_gradient_recipes.py rehearses an update are left to it."""
    found = set()
    for block in of(*SHELL):
        for words in commands(block.text, only_known=block.language == ""):
            if words[:2] == ["align", "train"] and "/shapes" in words[2] and ".py" not in str(words):
                found.add(" ".join(word for word in words[2:] if not word.startswith(SAME)))
    elsewhere = (ROOT / "tests/align/test_gradient_recipes.py").read_text(encoding="utf-8")
    return sorted(one for one in found - NOT_REHEARSED.keys() if f'"{one}": ' not in elsewhere)


@pytest.mark.parametrize("recipe", trained())
def test_trainings_by_a_dry_run(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = meant("train", parsed(["train", *recipe.split()])[1])
    assert re.search(r"network calls +\d", plan(loaded))  # type: ignore[arg-type]


@pytest.mark.parametrize("page", pages())
def test_links(page):
    """mkdocs looks at docs/ alone, and GitHub shows all of them."""
    wrong = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.resolve().exists():
            wrong.append(link)
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.resolve().relative_to(ROOT).as_posix()):
            wrong.append(link)
    assert not wrong, wrong


@pytest.mark.parametrize(
    "command",
    [
        "align train draft/shapes --dryrun",
        "align trian draft/shapes",
        "align train draft/shape",
        "align train draft/shapes optim.lrr=1e-3",
        "align train draft/shapes sampling.last_k=11",
        "align sample runs/nothing 'a red circle'",
        "align reno 'a red circle' --reward clipp=1",
        "align score a.png --reward pikscore",
        "align shapes render",
        "accelerate launch --config_file recipes/accelerate/none.yaml -m align train draft/shapes",
        "accelerate launch --nproc 2 -m align train draft/shapes",
        "ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 -m align train draft/shapes --resum auto",
        "python scripts/nothing.py",
        "python scripts/compare.py curves --sedes 1",
        "pip install 'diffalign[nothing]'",
        "rm -r runs",
    ],
)
def test_a_wrong_command_is_found(command):
    with pytest.raises(Wrong):
        for words in commands(command):
            check(words)


def test_blocks_are_found():
    page = 'text\n\n    align train x  # why\n\n- item\n\n    goes on\n\n```python title="a.py"\nx = 1\n```\n'
    found = blocks("page", page)
    assert [(b.language, b.title, b.text) for b in found] == [
        ("", None, "align train x  # why\n"),
        ("python", "a.py", "x = 1\n"),
    ]
    assert list(commands("A=1 align x 'b c' && python -m y > z  # no\n")) == [
        ["align", "x", "b c"],
        ["python", "-m", "y"],
    ]
