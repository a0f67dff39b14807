"""Files that users give: whatever is in them is read, or is an error that says what is wrong with it."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lit_depth.results.reading import MAX_DEPTH, MAX_VALUES, load_yaml, read_json, read_object

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, width=32) | st.text("ab#:é "),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_yaml_is_what_pyyaml_reads(value):
    text = yaml.safe_dump(value)
    assert load_yaml(text) == yaml.safe_load(text)


def test_aliases_and_merge_keys_are_read():
    text = "a: &x {b: 1}\nc: {<<: *x, d: 2}\ne: [*x, *x]\n"
    assert load_yaml(text) == {"a": {"b": 1}, "c": {"b": 1, "d": 2}, "e": [{"b": 1}, {"b": 1}]}


def doubling(levels: int) -> str:
    """Each line stands for twice as many values as the one before."""
    lines = ["- &l0 x", *(f"- &l{level} [*l{level - 1}, *l{level - 1}]" for level in range(1, levels + 1))]
    return "\n".join(lines)


def test_aliases_are_counted_in_full():
    assert len(load_yaml(doubling(10))) == 11
    for levels in (17, 400):
        with pytest.raises(yaml.YAMLError, match=f"at most {MAX_VALUES:,} values"):
            load_yaml(doubling(levels))
    with pytest.raises(yaml.YAMLError, match=f"at most {MAX_VALUES:,} values"):
        load_yaml("[" + "x, " * MAX_VALUES + "x]")


def test_depth_is_limited():
    assert load_yaml("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)) is not None
    for depth in (MAX_DEPTH, 200_000):
        with pytest.raises(yaml.YAMLError, match=f"at most {MAX_DEPTH} deep"):
            load_yaml("[" * depth + "]" * depth)


@pytest.mark.parametrize("text", ["&a [*a]", "*a", "a: [1", "\0", "!!python/name:os.system", "2020-13-45", "9" * 5000])
def test_what_is_no_yaml_is_an_error_of_yaml(text):
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"9" * 5000, "no JSON"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"null", r"expected a JSON object \{...\} in it, got None"),
        (b"[1]", "expected a JSON object"),
    ],
)
def test_what_is_no_json_object(tmp_path, content, message):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_object(path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="it cannot be read: No such file"):
        read_json(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="it cannot be read: Is a directory"):
        read_json(tmp_path)
