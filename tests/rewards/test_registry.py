"""The registry: folders, dotted paths, what is said of a wrong name, and its part in pydantic."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, SerializeAsAny, ValidationError

from rewards._config import ComponentConfig
from rewards._registry import Registry, RegistryError, component_of, load_object

ANIMAL = '''
"""A component."""
from typing import Literal
from rewards._config import ComponentConfig

class {title}Config(ComponentConfig):
    name: Literal["{name}"] = "{name}"
    legs: int = 4

class {title}:
    """Has legs."""
    Config = {title}Config
    def __init__(self, config):
        self.config = config
'''


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Two folders of components; `_hidden.py` is none, and `broken.py` must never be imported by listing."""
    package = f"zoo_{tmp_path.name.replace('-', '_')}"
    for folder, names in (("farm", ("cat", "dog")), ("wild", ("lion",))):
        path = tmp_path / package / folder
        path.mkdir(parents=True)
        (path / "__init__.py").touch()
        for name in names:
            (path / f"{name}.py").write_text(ANIMAL.format(name=name, title=name.title()))
    (tmp_path / package / "farm" / "_hidden.py").write_text("raise RuntimeError")
    (tmp_path / package / "farm" / "broken.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "mine.py").write_text(ANIMAL.format(name="anything", title="Unicorn"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return Registry([f"{package}.farm", f"{package}.wild", f"{package}.not_there"], "animal")


def test_names_are_the_folders_files_and_nothing_is_imported(zoo):
    assert zoo.names() == ["broken", "cat", "dog", "lion"]


def test_a_name_or_a_mapping_becomes_its_components_config(zoo):
    assert zoo.look_up("lion") == zoo.look_up({"name": "lion"}) == zoo.get("lion").Config()
    assert zoo.look_up({"name": "cat", "legs": 3}).legs == 3
    assert zoo.look_up(zoo.look_up("cat")) == zoo.look_up("cat")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("lino", r'there is no animal "lino". Did you mean "lion"\? Known: broken, cat, dog, lion'),
        ({"legs": 3}, "the animal has no name. Set name to one of: broken, cat, dog, lion"),
        ({"name": 3}, "is called 3, which is not text"),
        (3, "3 is no animal: give a name, or a mapping with the key name"),
        ("no_such_module:Thing", "there is no module no_such_module"),
        ("mine:Unicron", 'mine has no "Unicron". Did you mean "Unicorn"'),
        ("mine:UnicornConfig", '"mine:UnicornConfig" is no animal: it must be a class with a class attribute Config'),
        ("nowhere.py:Thing", "there is no file .*nowhere.py"),
        ("mine:", "is not of the form"),
    ],
)
def test_what_is_said_of_a_wrong_name(zoo, value, said):
    with pytest.raises(RegistryError, match=said) as caught:
        zoo.look_up(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["mine:Unicorn", "mine.py:Unicorn"])
def test_a_dotted_path_is_accepted_and_remembered(zoo, path):
    class Holder(BaseModel):
        animal: Annotated[SerializeAsAny[ComponentConfig], zoo]

    holder = Holder.model_validate({"animal": {"name": path, "legs": 1}})
    assert holder.model_dump() == {"animal": {"name": path, "legs": 1}}
    assert Holder.model_validate(holder.model_dump()) == holder
    assert zoo.get(path)(holder.animal).config.legs == 1


def test_a_file_of_the_users_that_fails_is_one_line(zoo, tmp_path):
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "raises.py").write_text("\nraise OSError('gone')\n")
    (tmp_path / "needs.py").write_text("import no_such_package_at_all\n")
    for path, said in (
        ("syntax.py:f", r"SyntaxError: .*syntax\.py:1\)"),
        ("raises:f", r"OSError: gone \(.*raises\.py:2\)"),
        ("needs:f", r"ModuleNotFoundError: No module named 'no_such_package_at_all' \(.*needs\.py:1\)"),
    ):
        with pytest.raises(RegistryError, match=said):
            load_object(path)


def test_inside_pydantic_every_problem_has_its_place(zoo):
    class Holder(ComponentConfig):
        pets: dict[str, Annotated[SerializeAsAny[ComponentConfig], zoo]]
        count: int

    with pytest.raises(ValidationError) as caught:
        pets = {"a": {"name": "cat", "legz": 1}, "b": "dgo", "c": {"name": "dog", "legs": "x"}}
        Holder.model_validate({"pets": pets})
    problems = {".".join(map(str, error["loc"])): error["msg"] for error in caught.value.errors()}
    assert problems.keys() == {"pets.a.legz", "pets.b", "pets.c.legs", "count"}
    assert problems["pets.a.legz"] == 'unknown key. Did you mean "legs"? Known here: name, legs; or remove it.'
    assert problems["pets.c.legs"] == "is 'x'. Set legs to a whole number (default: 4)."
    assert 'there is no animal "dgo". Did you mean "dog"?' in problems["pets.b"]
    assert problems["count"] == "is missing. Set it."


def test_the_schema_has_a_branch_for_each_component(zoo, tmp_path):
    next(tmp_path.rglob("broken.py")).unlink()

    class Holder(BaseModel):
        animal: Annotated[SerializeAsAny[ComponentConfig], zoo]

    schema = Holder.model_json_schema()
    branches = schema["properties"]["animal"]["oneOf"]
    settings = [branch["allOf"][0]["properties"] for branch in branches[:3]]
    assert [properties["name"]["const"] for properties in settings] == ["cat", "dog", "lion"]
    assert all(properties["legs"]["type"] == "integer" for properties in settings)
    assert {"type": "string", "enum": ["cat", "dog", "lion"]} in branches


def test_a_file_exposes_exactly_one_component(zoo, tmp_path):
    import importlib

    two = ANIMAL.format(name="a", title="A") + ANIMAL.format(name="b", title="B")
    (tmp_path / "two.py").write_text(two)
    with pytest.raises(TypeError, match=r"must expose exactly one component, it has \['A', 'B'\]"):
        component_of(importlib.import_module("two"))


def test_frozen_and_documented():
    class Settings(ComponentConfig):
        kind: Literal["a", "b"] = "a"
        """Which."""

    assert Settings.model_fields["kind"].description == "Which."
    with pytest.raises(ValidationError, match="frozen"):
        Settings().kind = "b"


def test_listing_rewards_imports_no_torch():
    code = "import rewards, sys; from align.registry import REWARDS; REWARDS.names(); print('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
