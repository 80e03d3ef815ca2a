"""What is handed out: the wheel and the source archive hold what they should and nothing else; and the wheel, installed
by itself, is used from another folder."""

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("align", "rewards", "samplers")
ARCHIVED = (*PACKAGES, "recipes", "scripts", "tests", "docs")
BESIDE = {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO", ".gitignore"}


def build(source: Path, output: Path, *kinds: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), *kinds, str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with both, the wheel made from the unpacked archive, as pip makes it."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def built(dist):
    """(wheel, source archive)."""
    (wheel,), (archive,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    return zipfile.ZipFile(wheel), tarfile.open(archive)


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """A folder that holds the wheel's packages and nothing else; torch and the like come from the environment."""
    folder = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*install, "--target", str(folder), *map(str, dist.glob("*.whl"))], check=True, capture_output=True)
    return folder


def align(installed: Path, cwd: Path, *args: str) -> str:
    code = f"import align; assert align.__file__.startswith({str(installed)!r}); import align.__main__ as m; m.main()"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ours(*folders: str) -> set[str]:
    """The checkout's files in some folders, less those that git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return {name for name in listed if (ROOT / name).is_file()}


def test_the_wheel(built):
    found = {name for name in built[0].namelist() if ".dist-info/" not in name}
    assert found == ours(*PACKAGES) | {f"align/_{name}" for name in ours("recipes")}
    assert all(f"{package}/py.typed" in found for package in PACKAGES)
    weights = {str(path.relative_to(ROOT)) for path in (ROOT / "align/shapes/checkpoints").rglob("*.safetensors")}
    assert weights and weights <= found, "the embedded models travel with it"
    assert any(name.startswith("align/data/sets/") for name in found)
    assert any(name.endswith("licenses/LICENSE") for name in built[0].namelist())


def test_the_source_archive(built):
    names = [member.name.partition("/")[2] for member in built[1].getmembers() if member.isfile()]
    assert set(names) == ours(*ARCHIVED) | BESIDE


def test_every_dependency_has_a_lower_bound(built):
    (name,) = [n for n in built[0].namelist() if n.endswith(".dist-info/METADATA")]
    stated = Parser().parsestr(built[0].read(name).decode()).get_all("Requires-Dist") or []
    requirements = [Requirement(line) for line in stated]
    assert {"torch", "diffusers", "peft", "huggingface-hub"} <= {r.name.replace("_", "-") for r in requirements}
    unbound = [str(r) for r in requirements if not any(s.operator in (">=", "==", "~=") for s in r.specifier)]
    assert not unbound


def test_named_recipes_and_embedded_models_are_found_from_another_folder(installed, tmp_path):
    assert "draft/shapes " in align(installed, tmp_path, "recipes")
    assert "parameters" in align(installed, tmp_path, "train", "draft/shapes", "--dry-run")


@pytest.mark.slow
def test_the_demos_recipe_runs_from_another_folder(installed, tmp_path):
    short = ["train.num_updates=2", "evaluate.num_prompts=16", "hooks.guard.num_prompts=4"]
    said = align(installed, tmp_path, "train", "draft/shapes", *short)
    assert "gold" in said
    assert (tmp_path / "runs" / "draft-shapes" / "adapter" / "pytorch_lora_weights.safetensors").is_file()
