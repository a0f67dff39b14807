"""Where tables come from: names of splits, files of a folder, tables that cannot be read."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from lit_depth.data.sources import (
    LocalSource,
    Source,
    canonical_split,
    find_splits,
    image_folder,
    load_table,
    repository_names,
    split_name,
)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["validation.parquet"], "validation"),
        (["val-00000-of-00002.parquet"], "validation"),
        (["0000.parquet", "testdev"], "testdev"),
        (["0000.parquet", "data", "train"], "train"),
        (["test-0.parquet", "train"], "test"),
        (["a.parquet"], "unnamed"),
        (["mine-0.parquet"], "mine"),
    ],
)
def test_the_split_of_a_file_is_read_off_its_name_then_its_folders(parts, expected):
    assert split_name(parts, ["mine"]) == expected


def test_one_name_for_each_split_and_two_for_an_owner_that_moved():
    assert [canonical_split(name) for name in ("val", "val2014", "valid", "test")] == ["validation"] * 3 + ["test"]
    assert repository_names("lmms-lab-encoder/textvqa") == ["lmms-lab-encoder/textvqa", "lmms-lab/textvqa"]
    assert repository_names("me/textvqa") == ["me/textvqa"]


def test_files_of_a_folder_by_split_without_those_of_other_tasks(tmp_path):
    touch(tmp_path, "val-0.parquet", "val-1.parquet", "train/0.parquet", "other/val.parquet", ".cache/val.parquet")
    found = find_splits(str(tmp_path), "mine", ["other"])
    names = {split: [Path(file).name for file in source.files] for split, source in found.items()}
    assert names == {"validation": ["val-0.parquet", "val-1.parquet"], "train": ["0.parquet"]}
    touch(tmp_path, "mine/val.parquet", "mine/Config/test.parquet")
    assert find_splits(str(tmp_path), "mine").keys() == {"validation", "test"}
    assert find_splits(str(tmp_path), "mine", config="Config").keys() == {"test"}
    single = find_splits(str(tmp_path / "val-1.parquet"), "mine")["validation"]
    assert single.files == (str(tmp_path / "val-1.parquet"),)


def test_a_folder_without_files_and_one_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"there is no \*.parquet for mine in"):
        find_splits(str(tmp_path), "mine")
    with pytest.raises(ValueError, match="does not exist; expected a folder with parquet files for mine"):
        find_splits(str(tmp_path / "nowhere"), "mine")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_local_table_is_read_and_a_damaged_one_named(tmp_path, streaming):
    path = tmp_path / "val.parquet"
    datasets.Dataset.from_dict({"a": [1, 2, 3]}).to_parquet(str(path))
    source = LocalSource(str(tmp_path), "validation", (str(path),), str(tmp_path))
    assert [row["a"] for row in load_table(source, "mine", streaming)] == [1, 2, 3]
    path.write_bytes(b"nothing of the kind")
    if not streaming:  # which reads when it is asked for rows
        with pytest.raises(ValueError, match=r"mine: cannot read validation\*.parquet in .*: .*[Pp]arquet"):
            load_table(source, "mine", streaming)


def test_images_may_lie_in_the_folder_that_was_given_or_in_the_cache(tmp_path):
    folder, top = tmp_path / "top" / "mine", tmp_path / "top"
    found = image_folder(LocalSource(str(folder), "validation", (), str(top)))
    assert found.start == str(folder) and found.tops == (str(top),)
    cache = image_folder(Source("me/mine", "test"))
    assert cache.start in cache.tops and cache.find("picture.png").startswith(cache.start)
    with pytest.raises(ValueError, match="lies outside"):
        cache.find("/etc/picture.png")
