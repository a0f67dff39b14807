"""A stored model of time is used for the model and machine that it was fitted on, and for no other."""

from __future__ import annotations

import os
from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_depth.functional.latency.time_model import Request, StageTimes, TimeModel, fit_time_model
from lit_depth.module import DepthModule
from lit_depth.results.store import write_json
from lit_depth.studies.shared.stored_times import machine_of, request_of, stored_model

TRAINER: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), precision="32-true")
ARGUMENTS = {name: parameter.default for name, parameter in signature(DepthModule.__init__).parameters.items()}


def depth_module(**changes: Any) -> Any:
    return SimpleNamespace(model=SimpleNamespace(dtype=torch.float32), hparams=ARGUMENTS | changes)


def fitted(scale: float, machine: dict[str, Any]) -> TimeModel:
    requests = [Request(count, count, 1, 50, 4) for count in (1, 2, 4)]
    times = [StageTimes(3.0, scale * (5.0 + 2.0 * each.num_mlps), 1.0 + 0.5 * each.num_mlps) for each in requests]
    return fit_time_model(requests, times, machine)


def test_the_newest_of_the_same_machine_predicts(tmp_path) -> None:
    model = depth_module()
    assert stored_model(TRAINER, model, str(tmp_path), 4) is None
    same = machine_of(TRAINER, model)
    machines = {"old": same, "new": same, "other": {**same, "device": "another"}}
    for age, (name, machine) in enumerate(machines.items()):
        (tmp_path / "latency" / name).mkdir(parents=True)
        path = tmp_path / "latency" / name / "time_model.json"
        write_json(path, fitted(1.0 + age, machine).to_dict())
        os.utime(path, (age, age))
    found = stored_model(TRAINER, model, str(tmp_path), 4)
    assert found is not None and found[0].parent.name == "new"
    # 3 + 2 (5 + 2 * 3) + 3 (1 + 0.5 * 3)
    assert found[1].predict(request_of("1101", 1, 50, 4)).total(4) == pytest.approx(3 + 22 + 7.5, rel=1e-6)
    others = ({"checkpoint": "other"}, {"phase": "decode"}, {"experts_per_token": 1}, {"max_crops": 1})
    for changes in others:
        assert stored_model(TRAINER, depth_module(**changes), str(tmp_path), 4) is None


def test_one_without_decode_steps_predicts_none(tmp_path) -> None:
    model, requests = depth_module(), [Request(count, count, 1, 50, 1) for count in (1, 2, 4)]
    found = fit_time_model(
        requests, [StageTimes(3.0, 5.0 + each.num_mlps, None) for each in requests], machine_of(TRAINER, model)
    )
    (tmp_path / "latency" / "default").mkdir(parents=True)
    write_json(tmp_path / "latency" / "default" / "time_model.json", found.to_dict())
    assert stored_model(TRAINER, model, str(tmp_path), 4) is None
    stored = stored_model(TRAINER, model, str(tmp_path), 1)
    assert stored is not None and stored[1].predict(request_of("1100", 1, 50, 1)).total(1) == pytest.approx(3 + 7)


def test_a_damaged_file_is_named(tmp_path) -> None:
    (tmp_path / "latency" / "default").mkdir(parents=True)
    (tmp_path / "latency" / "default" / "time_model.json").write_text("{}")
    with pytest.raises(ValueError, match="time_model.json: expected a model of time.*: delete it, and fit it again"):
        stored_model(TRAINER, depth_module(), str(tmp_path), 4)
