"""Objects are found by their class path, and what keeps one from being found is named."""

from __future__ import annotations

import pytest

from lit_depth.functional.class_paths import object_at, signature_of, taken_by


def test_an_object_is_found():
    assert object_at("tests.functional.test_class_paths.object_at", "anything") is object_at


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no_such_package.Thing", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("tests.functional.test_class_paths.Nothing", "AttributeError"),
        ("plain", "ValueError"),
    ],
)
def test_a_path_to_nothing_is_named(path, reason):
    with pytest.raises(ValueError, match=f"expected the class path of a thing, got '{path}': {reason}.*PYTHONPATH"):
        object_at(path, "a thing")


def test_a_module_that_fails_to_import_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_module_of_mine.py").write_text("raise OSError('no disk')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="OSError: no disk"):
        object_at("broken_module_of_mine.Thing", "a thing")


def two(a, b=1):
    return a


def by_position(a, /):
    return a


def anything(a, **others):
    return a


@pytest.mark.parametrize(
    ("function", "names", "taken"),
    [
        (two, "ab", ["a", "b"]),
        (two, "bca", ["b", "a"]),
        (two, "a", ["a"]),
        (two, "b", None),
        (by_position, "a", None),
        (anything, "ab", ["a"]),
        (dict.fromkeys, "a", None),
        (3, "a", None),
    ],
)
def test_a_function_takes_what_its_signature_names(function, names, taken):
    assert taken_by(function, list(names)) == taken
    if taken is not None:
        function(**dict.fromkeys(taken))
        assert signature_of(function) is not None
