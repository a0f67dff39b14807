"""Files of a run survive being killed, and refuse what would be a wrong result."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_depth.results.store import (
    atomic_path,
    check_name,
    locked_folder,
    prepare_folder,
    read_of_run,
    run_of,
    save_figure,
    write_json,
    write_manifest,
    write_of_run,
    write_parquet,
    write_text,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def not_a_folder(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_text("here")
    return file / "results"


# --- whole files


@given(json_values)
@settings(max_examples=50, deadline=None)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "round.json"
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value


def test_json_converts_numpy_torch_and_paths(tmp_path: Path) -> None:
    value = {0: np.float32(0.5), "n": np.int64(3), "a": np.arange(2), "t": torch.tensor([True]), "p": Path("x/y")}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == {"0": 0.5, "n": 3, "a": [0, 1], "t": [True], "p": "x/y"}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.float64("nan"), np.array([1.0, np.nan])])
def test_json_refuses_nan_and_names_the_place(tmp_path: Path, number: Any) -> None:
    with pytest.raises(ValueError, match=r"\$\.masks\[1\]\.quality"):
        write_json(tmp_path / "a.json", {"masks": [{}, {"quality": number}]})
    assert list(tmp_path.iterdir()) == []


def test_failure_before_the_rename_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, [1])

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_depth.results.store.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, [2])
    assert json.loads(path.read_text()) == [1]
    assert list(tmp_path.iterdir()) == [path]


def test_failure_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".png"
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_is_not_utf8_does_not_lose_the_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "half \ud800 pair")
    assert (tmp_path / "a.txt").read_text() == "half ? pair"


def test_figure_and_table_are_written_whole(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    save_figure(Figure(), tmp_path / "new" / "figure.png")
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")
    frame = pd.DataFrame({"mask": ["11", "10"], "prediction": ["é\u2028", "<b>"], "score": [1.0, 0.5]})
    write_parquet(tmp_path / "records.parquet", frame)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "records.parquet"), frame)


def test_unwritable_folder_is_one_readable_error(not_a_folder: Path) -> None:
    for write in (
        lambda: prepare_folder(not_a_folder),
        lambda: write_json(not_a_folder / "a.json", {}),
    ):
        with pytest.raises(ValueError, match="cannot write to .*results: expected a writable folder"):
            write()


def test_prepare_folder_leaves_nothing(tmp_path: Path) -> None:
    folder = prepare_folder(str(tmp_path / "a" / "b"))
    assert folder.is_dir() and list(folder.iterdir()) == []
    assert prepare_folder(folder) == folder


def test_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"model": Path("checkpoint"), "seeds": (0, 1)}, fingerprint="abc")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["arguments"] == {"model": "checkpoint", "seeds": [0, 1]}
    assert manifest["fingerprint"] == "abc"
    assert manifest["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    packages = {"lit_depth", "torch", "transformers", "lightning", "tokenizers", "numpy", "pillow", "datasets"}
    packages |= {"torchvision", "safetensors", "jinja2", "torchmetrics"}
    assert manifest["versions"].keys() == {*packages, "python", "platform"}


# --- names


@pytest.mark.parametrize("name", ["a", "default", "qwen 2, 8 bit", "größe_10", ".hidden", "x" * 100, "a..b", "ü" * 100])
def test_names_of_one_folder(tmp_path: Path, name: str) -> None:
    assert check_name(name) == name
    (tmp_path / name).mkdir()


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/",
        "/tmp/x",
        "a/b",
        "../a",
        "a\\b",
        "a\nb",
        "a\0b",
        "\x1b[31m",
        "\u202ea",
        "\udcff",
        "-a",
        "--name",
    ]
    + [" ", " a", "a ", "x" * 101, "字" * 90, None, 3],
)
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="--name: expected the name of one folder") as error:
        check_name(name)
    assert str(error.value).isprintable()


# --- whose file it is


def test_a_file_belongs_to_the_run_of_the_manifest_above_it(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a", {}, run="11")
    write_manifest(tmp_path / "b", {}, run="22")
    file = tmp_path / "a" / "records" / "batch_size.json"
    write_of_run(file, {"batch_size": 8})
    assert read_of_run(file)["batch_size"] == 8 and run_of(file) == "11"
    assert run_of(tmp_path / "elsewhere" / "file.json") is None
    other = tmp_path / "b" / "batch_size.json"
    other.write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"batch_size.json belongs to another run \(11, this one is 22\): delete it"):
        read_of_run(other)
    other.write_text('{"batch_size": 8}')  # by an earlier version
    with pytest.raises(ValueError, match="another run"):
        read_of_run(other)
    other.write_text("[8")
    with pytest.raises(ValueError, match="is damaged .*no JSON.*: delete it"):
        read_of_run(other)


# --- symbolic links


def test_nothing_is_written_through_a_link_inside_a_runs_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    victim = tmp_path / "outside" / "victim.json"
    victim.write_text("mine")
    run = tmp_path / "real"
    write_manifest(run, {}, run="1")
    (run / "figures").symlink_to(tmp_path / "outside")
    (run / "result.json").symlink_to(victim)
    for path in (run / "figures" / "a.json", run / "figures" / "deep" / "a.json", run / "result.json"):
        with pytest.raises(ValueError, match="(figures|result.json) is a symbolic link.*delete it"):
            write_json(path, {})
    assert victim.read_text() == "mine" and os.listdir(tmp_path / "outside") == ["victim.json"]
    # where the user put the folder itself is the user's business
    (tmp_path / "linked").symlink_to(run)
    write_json(tmp_path / "linked" / "new.json", [1])
    assert json.loads((run / "new.json").read_text()) == [1]


def test_a_lock_that_is_a_link_does_not_empty_its_target(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = prepare_folder(tmp_path / "run")
    (folder / ".lock").symlink_to(victim)
    with pytest.raises(ValueError, match=r"\.lock is a symbolic link"), locked_folder(folder):
        pass
    assert victim.read_text() == "mine"


def test_a_temporary_file_that_is_there_already_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".a.{os.getpid()}.json").symlink_to(victim)
    write_json(tmp_path / "a.json", [1])
    assert victim.read_text() == "mine" and not (tmp_path / "a.json").is_symlink()
