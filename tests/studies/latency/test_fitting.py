"""The model of time is fitted to the run's requests and a few more, and told with its error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from lit_depth.functional.latency.time_model import Request, StageTimes
from lit_depth.studies.latency import fitting

MASKS = [f"{(1 << count) - 1:06b}"[::-1] for count in (1, 2, 3, 4, 6)]


def record(mask: str, rows: int, prompt: int, sample: int) -> dict[str, Any]:
    """3 ms for each image, 5 ms and 2 ms per block for a prompt of any length, 1 ms and 0.5 ms per block for a step."""
    count = mask.count("1")
    return {
        **{"mask": mask, "sample": str(sample), "batch_size": rows, "num_output_tokens": 4 * rows},
        **{"num_text_tokens": (prompt - 20) * rows, "num_vision_tokens": 20 * rows},
        **{"vision": 3.0 * rows, "prefill": 5.0 + 2.0 * count, "decode_per_token": 1.0 + 0.5 * count},
    }


def test_further_batches_and_longer_prompts_are_timed_once_each(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int, list[str]]] = []

    def time_masks(run, split, masks, path, *, num_requests, batch_size, more_tokens, **_):
        asked.append((batch_size, more_tokens, num_requests, list(masks)))
        return pd.DataFrame([record(mask, batch_size, 50 + more_tokens, 0) for mask in masks])

    monkeypatch.setattr(fitting, "time_masks", time_masks)
    monkeypatch.setattr(fitting, "machine_of", lambda trainer, model, _: {"device": "a CPU"})
    monkeypatch.setattr(fitting, "context_length", lambda model: 84)
    run = SimpleNamespace(folder=tmp_path, trainer=None, model=SimpleNamespace(model=None))
    records = pd.DataFrame([record(mask, 1, 50, sample) for mask in MASKS for sample in range(2)])
    found = fitting.measure_and_fit(run, records, MASKS, new_tokens=4, threads=1, num_samples=8)
    # of the context of 84 tokens 30 are left beside a prompt and its answer; the run's own requests are not repeated
    assert [each[:3] for each in asked] == [(1, 30, 3), (4, 0, 2), (4, 30, 2)] and asked[0][3] == MASKS
    assert found.machine == {"device": "a CPU"} and found.ranges["prompt_tokens"] == (50, 80)
    times = found.predict(Request(5, 5, 2, 60, 4))
    assert times == pytest.approx(StageTimes(6.0, 15.0, 3.5), rel=1e-6)
    assert found.held_out is not None and found.held_out["total"].largest < 1e-6


def test_requests_are_what_was_recorded() -> None:
    records = pd.DataFrame([record("1010", 2, 50, 0), {**record("1111", 1, 40, 1), "decode_per_token": None}])
    requests, times = fitting.to_requests(records)
    assert requests == [Request(2, 2, 2, 45, 4), Request(4, 4, 1, 45, 4)]
    assert times[0] == (6.0, 9.0, 2.0) and times[1].decode_per_token is None


def test_an_error_above_the_target_is_told_with_what_to_do() -> None:
    model = {"constants": {"vision": {"fixed": 1.5}}, "held_out": {"total": dict(median=0.08, largest=0.3)}}
    model["held_out"]["total"]["num_predictions"] = 7
    section = fitting.time_model_section(model)
    assert "predicted to 8.0% (median of 7; at worst 30.0%). That is more than 5%" in section.text
    assert section.table is not None and list(section.table.rows) == [["vision", "fixed", "1.5"]]
    assert "nothing is known of the error" in fitting.describe_errors({"held_out": None})
