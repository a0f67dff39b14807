"""What token masking tells, and what loggers keep of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_depth.studies.shared.publish import as_text
from lit_depth.studies.tokens.report import report
from tests.helpers.wandb_run import files_of, logged_report, read_table

FILES = ("masking_results.csv", "masking_results.json", "masking_results.parquet", "tokens_0.html", "tokens_1.html")


def tokens_result() -> dict[str, Any]:
    """Two prompts, two blocks."""

    def group(scale: float) -> dict[str, Any]:
        distances = {"l2_distance": [scale, 2 * scale], "cosine_distance": [None, 0.5]}
        return {"Full": distances, "Attn": {**distances, "l2_distance": [3 * scale, None]}, "num_prompts": 2}

    prompt = {"name": "a", "text": "What?", "image": None, "num_tokens": 9, "num_vision_tokens": 0}
    pages = [{**prompt, "generated_text": " no", "page": f"tokens_{index}.html", "layers": []} for index in range(2)]
    result = {"prompts": pages, "averages": {"text": group(1.0), "final": group(4.0)}, "spans": {"text": group(9.0)}}
    bad = [{"id": "b", "reason": "too long"}]
    return result | {"num_blocks": 2, "num_output_tokens": 3, "device": "cpu", "bad_samples": bad}


def test_token_masking_is_in_the_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, folder = tokens_result(), tmp_path / "result"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text(name)
    logged = logged_report(report(result, FILES), "tokens.json", result, tmp_path, monkeypatch)

    *_, media = logged.history
    rows = [tuple(row.values()) for row in read_table(logged, media["tokens/by_block"])]
    assert len(rows) == 3 * 2 * 2 and rows[:4] == [
        ("text", False, "Full", 0, 1.0, None),
        ("text", False, "Full", 1, 2.0, 0.5),
        ("text", False, "Attn", 0, 3.0, None),
        ("text", False, "Attn", 1, None, 0.5),
    ]
    assert rows[-4] == ("text", True, "Full", 0, 9.0, None)
    assert [row["generated_text"] for row in read_table(logged, media["tokens/prompts"])] == [" no", " no"]
    drawn = (folder / "figures" / "tokens_by_block.png").read_bytes()
    assert (logged.files / media["figures/tokens_by_block"]["path"]).read_bytes() == drawn
    (artifact,) = [artifact for artifact in logged.artifacts if artifact.type == "tokens"]
    files = {"tokens.json", "masking_results.csv", "masking_results.parquet", "tokens_0.html", "tokens_1.html"}
    assert files_of(artifact) == files


def test_what_is_left_out_is_told_and_cosine_distances_are_on_the_page_only() -> None:
    told = report(tokens_result(), FILES)
    text = as_text(told)
    assert text.startswith("\n2 prompts, 3 generation steps, 2 blocks, on cpu.") and "b is left out: too long" in text
    assert [section.printed for section in told.sections] == [True, True, False]
    assert told.sections[1].table.headers == ["block", "text", "final", "whole text"]
    assert told.sections[1].table.rows == [[0, "1", "4", "9"], [1, "2", "8", "18"]]
    assert told.sections[2].table.rows == [[0, None, None, None], [1, "0.5", "0.5", "0.5"]]


def test_without_any_distance_there_is_no_figure() -> None:
    result = tokens_result()
    for variants in (*result["averages"].values(), *result["spans"].values()):
        variants["Full"] = dict.fromkeys(("l2_distance", "cosine_distance"), [None, None])
    assert report(result, FILES).figures == {} and report(result, FILES).sections[1].figures == []
