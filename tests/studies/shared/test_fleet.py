"""What Ray's workers could not answer as one process would is refused; the answers are in integrations/test_ray.py."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from lit_depth.studies.shared.fleet import check_executor
from tests.helpers.commands import run


def refuse(model: Any = None, **trainer: Any) -> None:
    given = {"executor": "ray", "world_size": 1, "precision": "32-true", **trainer}
    check_executor(SimpleNamespace(**given), model or SimpleNamespace(is_placed=False))  # type: ignore[arg-type]


def test_what_workers_could_not_repeat_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="got 2 processes: give --trainer.devices 1"):
        refuse(world_size=2)
    with pytest.raises(ValueError, match="expected --trainer.precision 32-true, got bf16-mixed"):
        refuse(precision="bf16-mixed")
    with pytest.raises(ValueError, match="device_map"):
        refuse(SimpleNamespace(is_placed=True))
    refuse(executor="lightning", world_size=2)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "lit_depth.integrations.ray", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'lit_depth\[ray\]'"):
        refuse()


def test_workers_without_ray_are_a_mistake(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["importance", "--output_dir", tmp_path, "--executor_workers", "2"]) == 2
    assert "give --executor ray too" in capsys.readouterr().err
