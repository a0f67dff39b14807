"""Weights are read and written a shard at a time, and what is damaged is named."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_depth.models.weight_files import INDEX, WEIGHTS, StoredWeights, header_of, split, write_weights


@pytest.fixture
def sharded(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    save_file({"b": torch.ones(4), "a": torch.zeros(2, dtype=torch.bfloat16)}, folder / "one.safetensors")
    save_file({"c": torch.full((3,), 2.0)}, folder / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def test_what_is_read_is_what_is_written(sharded, tmp_path):
    weights = StoredWeights(sharded)
    assert weights.sizes == {"a": 4, "b": 16, "c": 12} and weights.shard_bytes == 20
    write_weights(weights, {"b": "x.b", "c": "c"}, tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 28}
    assert index["weight_map"] == {
        "x.b": "model-00001-of-00002.safetensors",
        "c": "model-00002-of-00002.safetensors",
    }
    found = {name: value for path in tmp_path.glob("*.safetensors") for name, value in load_file(path).items()}
    assert torch.equal(found["x.b"], torch.ones(4)) and torch.equal(found["c"], torch.full((3,), 2.0))


def test_one_shard_needs_no_index(sharded, tmp_path):
    write_weights(StoredWeights(sharded), {"a": "a"}, tmp_path)
    found = load_file(tmp_path / WEIGHTS)
    assert found["a"].dtype == torch.bfloat16 and not (tmp_path / INDEX).exists()


def test_groups_keep_the_order_and_the_size():
    sizes = [(str(number), number % 5 + 1) for number in range(40)]
    groups = list(split(sizes, 12))
    assert [name for group in groups for name in group] == [name for name, _ in sizes]
    totals = [sum(dict(sizes)[name] for name in group) for group in groups]
    assert max(totals) <= 12 and all(a + dict(sizes)[b[0]] > 12 for a, b in zip(totals, groups[1:]))


def test_what_is_missing_or_damaged_is_named(sharded, tmp_path):
    with pytest.raises(ValueError, match=f"expected {WEIGHTS} or {INDEX} in .*, got neither"):
        StoredWeights(tmp_path)
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["d"] = "two.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="its index names d, which none of its files has"):
        StoredWeights(sharded)
    whole = (sharded / "two.safetensors").read_bytes()
    (sharded / "two.safetensors").write_bytes(whole[:-3])
    with pytest.raises(ValueError, match="two.safetensors is damaged: its size is not what its header says"):
        StoredWeights(sharded)
    (sharded / "two.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="two.safetensors is damaged: its header is longer than the file"):
        header_of(sharded / "two.safetensors")
    (sharded / "two.safetensors").unlink()
    with pytest.raises(ValueError, match=f"incomplete: {INDEX} names 2 files, missing two.safetensors"):
        StoredWeights(sharded)
    (sharded / INDEX).write_text("[]")
    with pytest.raises(ValueError, match=f"{INDEX} is damaged"):
        StoredWeights(sharded)
