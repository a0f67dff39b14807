"""What a comparison rests on: where its scores come from, which ties decided, what was timed already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_depth import DepthModule, DepthTrainer
from lit_depth.data import DepthDataModule
from lit_depth.data.tasks.shapes_vqa import ShapesVQA
from lit_depth.studies.compare.arguments import CompareArguments
from lit_depth.studies.compare.measurements import NOT_USED, given_importance, measure_times
from lit_depth.studies.shared.mask_grid import plan_masks
from lit_depth.studies.shared.run_folder import Run
from lit_depth.studies.shared.time_masks import clock_settings

SCORES = [0.9, 0.5, 0.4, 0.1]


def test_a_file_is_read_only_where_policies_need_it(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({str(block): score for block, score in enumerate(SCORES)}))
    unused: Any = None
    for asked, file in ((["prefix"], str(path)), (["importance"], None), (["importance"], "")):
        assert given_importance(file, CompareArguments(4, asked), unused, unused) == (None, NOT_USED)


@pytest.mark.slow
def test_what_was_timed_in_this_way_is_not_timed_again(checkpoint, tmp_path):
    model = DepthModule(str(checkpoint))
    data = DepthDataModule(model.prompter, ShapesVQA(num_images=10), num_samples=4, calibration_samples=4)
    plan = plan_masks(["random"], [2, 16], 16, num_seeds=3)
    trainer = DepthTrainer(logger=False, enable_progress_bar=False)
    run = Run(trainer, model, data, tmp_path, {}, 0.01)
    clock = clock_settings(torch.device("cpu"))

    def times(**options: int) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        arguments = CompareArguments(16, ["random"], [2, 16], **options)
        return measure_times(run, plan, arguments, clock)

    nothing, counted = times(num_requests=0)
    assert nothing == {} and counted["latency_requests"] is None and not list(tmp_path.iterdir())
    assert set(counted["flops"]) == {"1" * 16, *(planned.id for planned in plan)}
    first, told = times(num_requests=2, new_tokens=2)
    # the full model, and one of the three masks of two blocks
    assert told["latency_requests"] == 2 and told["latency_settings"]["new_tokens"] == 2
    assert set(told["latency_limits_ms"]) == set(first) == {"1" * 16, plan[0].id}
    again, _ = times(num_requests=2, new_tokens=2)
    assert again == first and len(list(tmp_path.rglob("*.jsonl"))) == 1
    times(num_requests=1, new_tokens=3)
    assert len(list(tmp_path.rglob("*.jsonl"))) == 2
