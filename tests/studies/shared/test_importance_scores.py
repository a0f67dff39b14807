"""Importance of blocks from a file: in order, checked, and with its ties where these are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from lit_depth.functional import top_k
from lit_depth.studies.shared.importance_scores import (
    check_blocks,
    name_ties,
    plain_scores,
    read_ties,
    records_of,
    tie_sentences,
    to_importance,
)


def test_importance_file_is_read_in_block_order() -> None:
    scores = {str(block_idx): block_idx / 10 for block_idx in reversed(range(12))}
    assert to_importance(scores, 12, "file.json") == [block_idx / 10 for block_idx in range(12)]
    chosen = top_k(to_importance(scores, 12, "file.json"), 2)
    assert chosen.nonzero().flatten().tolist() == [10, 11]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"0": 1.0}, r"blocks 0\.\.1, got \['0'\]"),
        ({"0": 1.0, "1": 1.0, "2": 1.0}, r"blocks 0\.\.1"),
        ({"0": 1.0, 1: 1.0}, r"blocks 0\.\.1"),
        ([1.0, 2.0], "got list"),
        ({"0": 1.0, "1": None}, "got None for block 1"),
        ({"0": "high", "1": 1.0}, "got 'high' for block 0"),
        ({"0": float("nan"), "1": 1.0}, "got nan for block 0"),
        ({"0": True, "1": 1.0}, "got True for block 0"),
    ],
)
def test_wrong_importance_files_are_refused(scores: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"file.json: expected .*{message}"):
        to_importance(scores, 2, "file.json")


def test_blocks_to_measure_are_all_but_those_skipped() -> None:
    assert check_blocks(4, [0, 2, 2]) == [1, 3]
    for num_blocks, skip, message in ((4, [4, -1], r"in 0..3, got \[4, -1\]"), (2, [0, 1], "no block"), (1, [], "no")):
        with pytest.raises(ValueError, match=message):
            check_blocks(num_blocks, skip)


def block(index: int, drop: float, tied_with: list[int]) -> dict[str, Any]:
    return {"block": index, "quality": {"drop": drop, "tied_with": tied_with}}


def write(folder: Path, **files: Any) -> str:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder / "layer_importance_scores.json")


BLOCKS = [block(0, 0.6, []), block(1, 0.1, [2]), block(2, 0.05, [1])]
SCORES = plain_scores(BLOCKS)


def test_ties_stand_beside_the_scores(tmp_path: Path) -> None:
    assert SCORES == {"0": 0.6, "1": 0.1, "2": 0.05}
    path = write(tmp_path, layer_importance_scores=SCORES)
    assert read_ties(path) is None  # alone
    entry = {"scores": SCORES, "tied_with": {"0": [], "1": [2], "2": [1]}}
    write(tmp_path, m5_mask_strategy_comparison={"importance": entry})
    assert read_ties(path) == {0: [], 1: [2], 2: [1]}
    # of several tasks those of the mean
    one, mean = {"tasks": [{"blocks": BLOCKS}], "macro": None}, {"tasks": [], "macro": BLOCKS}
    for run in (one, mean):
        write(tmp_path, importance=run)
        assert read_ties(path) == {0: [], 1: [2], 2: [1]}
    write(tmp_path, layer_importance_scores={**SCORES, "0": 0.5})
    assert read_ties(path) is None  # changed since


def test_ties_across_the_cut_are_named() -> None:
    scores, tied = [0.6, 0.1, 0.05, 0.0], {0: [], 1: [2, 3], 2: [1], 3: [1]}
    masks = {1: [0], 2: [0, 1], 3: [0, 1, 2]}
    assert name_ties(masks, scores, tied, keep=[]) == [
        {"num_active_blocks": 2, "blocks": [1, 2, 3], "kept": [1]},
        {"num_active_blocks": 3, "blocks": [1, 3], "kept": [1]},
    ]
    # nothing was decided about a block that is kept anyway
    assert name_ties(masks, scores, tied, keep=[1]) == []
    # as read from JSON; not known; no scores were used; no mask of the policy
    assert name_ties(masks, scores, {str(block): others for block, others in tied.items()}, keep=[1]) == []
    assert name_ties(masks, scores, None, keep=[]) is None
    assert name_ties(masks, None, None, keep=[]) == []
    assert name_ties({}, scores, tied, keep=[]) == []
    assert "stands alone, without tests" in tie_sentences({"ties": None, "source": "file.json"})[0]


def test_records_name_what_they_were_measured_on() -> None:
    def measured(task: str, split: str) -> Any:
        sweep = SimpleNamespace(records=pd.DataFrame({"mask": ["10", "11"]}))
        return SimpleNamespace(task=SimpleNamespace(name=task), split=split, sweep=sweep)

    found = records_of([measured("a", "calibration"), measured("b", "validation")], "task", "split")
    assert found.to_dict("list") == {
        "mask": ["10", "11"] * 2,
        "task": ["a", "a", "b", "b"],
        "split": ["calibration"] * 2 + ["validation"] * 2,
    }
    assert list(found.index) == [0, 1, 2, 3]
