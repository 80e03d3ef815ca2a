"""What is handed out: the wheel and the source archive hold what they should and nothing else."""

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
def built(tmp_path_factory):
    """(wheel, source archive), the wheel made from the unpacked archive, as pip makes it."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder)
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return zipfile.ZipFile(wheel), tarfile.open(archive)


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
