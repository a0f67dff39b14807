"""The rules of the house (see CONTRIBUTING.md): where things stand, and what may know of what."""

from __future__ import annotations

import ast
import importlib
import inspect
import re

import pytest

from lit_depth.commands import studies
from tests.helpers.house import (
    ROOT,
    circles,
    code_words,
    defined_names,
    imports,
    mirror,
    module_name,
    private_attributes,
    sources,
)

SOURCES = sources()
# rule 2: families of models, the names of their inputs, and the names by which one of them is prompted
FAMILY = re.compile(r"molmo|llava|paligemma|idefics|image_input_idx|image_masks|vqa2:|long_caption|prompt_style", re.I)
AT_HOME = ("lit_depth/models/", "lit_depth/recipes/")
# rule 3: private attributes of other libraries, by the module that may know them
PRIVATE: dict[str, set[str]] = {}


@pytest.mark.parametrize("name", studies())
def test_a_command_has_one_signature(name):
    from lit_depth.trainer import DepthTrainer

    function = getattr(importlib.import_module(f"lit_depth.studies.{name}.command"), name)
    assert vars(DepthTrainer)[name] is function
    assert list(inspect.signature(function).parameters)[:3] == ["trainer", "model", "datamodule"]


def family_names(text: str) -> list[str]:
    return [f"{line}: {word}" for line, word in code_words(text) if FAMILY.search(word)]


def test_only_models_name_a_family():
    named = {path: family_names(text) for path, text in SOURCES.items() if not path.startswith(AT_HOME)}
    assert {path: found for path, found in named.items() if found} == {}


def test_a_family_in_code_is_found_and_one_in_prose_is_not():
    assert family_names('"""As Molmo does."""\nbatch["image_input_idx"] = 1  # of Molmo\n') == ['2: "image_input_idx"']
    assert family_names("from lit_depth.models.molmo import MolmoConfig\n") == ["1: molmo", "1: MolmoConfig"]


def test_private_attributes_of_others_are_known_by_name():
    own = defined_names(SOURCES)
    found = {path: private_attributes(text, own) for path, text in SOURCES.items()}
    assert {path: names for path, names in found.items() if names} == PRIVATE


def test_a_private_attribute_is_found():
    assert private_attributes("cache._layers; self._mine; other._own", {"_own"}) == {"_layers"}


def test_masks_are_checked_at_one_door():
    calls = {
        path
        for path, text in SOURCES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "check_mask"
    }
    assert calls <= {"lit_depth/functional/masks.py"}


def test_no_two_modules_import_each_other():
    modules = {module_name(path): (text, path.endswith("__init__.py")) for path, text in SOURCES.items()}
    # a package's face only hands names on
    faces = {name for name, (_, is_package) in modules.items() if is_package}
    graph = {
        name: imports(text, name, set(modules), is_package) - faces
        for name, (text, is_package) in modules.items()
        if name not in faces
    }
    assert circles(graph) == []


def test_a_circle_is_found_also_inside_a_function():
    texts = {"a": "import b", "b": "def late():\n    from c import x", "c": "from a import y", "d": "import a"}
    graph = {name: imports(text, name, set(texts)) for name, text in texts.items()}
    assert circles(graph) == [["a", "b", "c"]]


def test_every_module_is_mirrored_by_a_test():
    missing = {path: place for path in SOURCES if (place := mirror(path)) and not (ROOT / place).is_file()}
    assert missing == {}


def test_a_module_without_its_test_is_named():
    assert mirror("lit_depth/data/nowhere.py") == "tests/data/test_nowhere.py"
    assert mirror("lit_depth/data/__init__.py") is None
