"""The wheel, installed by itself and used from another folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's packages and nothing else; torch and the like come from the environment."""
    folder = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, text=True)
    return folder


def align(installed: Path, cwd: Path, *args: str) -> str:
    code = f"import align; assert align.__file__.startswith({str(installed)!r}); import align.__main__ as m; m.main()"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_it_holds(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.split("/")[0] for name in names}
    assert packages - {name for name in packages if name.endswith(".dist-info")} == {"align", "rewards", "samplers"}
    ours = {f"align/_recipes/{path.relative_to(ROOT / 'recipes')}" for path in (ROOT / "recipes").rglob("*.yaml")}
    assert ours <= set(names)
    checkpoints = ROOT / "align" / "shapes" / "checkpoints"
    weights = {str(path.relative_to(ROOT)) for path in checkpoints.rglob("*.safetensors")}
    assert weights and weights <= set(names), "the embedded models travel with it"
    assert any(name.startswith("align/data/sets/") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_named_recipes_and_embedded_models_are_found_from_another_folder(installed, tmp_path):
    assert "draft/shapes " in align(installed, tmp_path, "recipes")
    assert "parameters" in align(installed, tmp_path, "train", "draft/shapes", "--dry-run")


@pytest.mark.slow
def test_the_demos_recipe_runs_from_another_folder(installed, tmp_path):
    short = ["train.num_updates=2", "evaluate.num_prompts=16", "hooks.guard.num_prompts=4"]
    said = align(installed, tmp_path, "train", "draft/shapes", *short)
    assert "gold" in said
    assert (tmp_path / "runs" / "draft-shapes" / "adapter" / "pytorch_lora_weights.safetensors").is_file()
