"""Whatever a report keeps for loggers is in the offline run of Weights & Biases, under its name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_depth.results.charts import Bar, importance_bars
from lit_depth.results.report import Curves, Report, Table
from tests.helpers.wandb_run import files_of, logged_report, read_table


def figure() -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))


def test_everything_of_a_report_is_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(
        "Title",
        "Headline.",
        [],
        "a kind",
        figures={"curve": figure},
        files={"scores.json": {"0": 0.5}},
        tables={"test/rows": Table(["block", "drop"], [[0, 0.5], [1, None]])},
        scalars={"full/quality": 0.75, "withheld": ""},
        curves=Curves("num_active_blocks", [{"num_active_blocks": 4, "quality/a": 0.5}, {"num_active_blocks": 8}]),
        charts={"bars": importance_bars([Bar("0", 0.5, [0.25, 0.75])], {"title": "Bars"})},
        metadata={"split": "calibration"},
    )
    logged = logged_report(report, "result.json", {"a": [1, 2.5]}, tmp_path, monkeypatch)
    assert logged.metrics["quality/a"] == "num_active_blocks"
    assert [row["quality/a"] for row in logged.history if "quality/a" in row] == [0.5]
    media = logged.history[-1]
    assert read_table(logged, media["test/rows"]) == [{"block": 0, "drop": 0.5}, {"block": 1, "drop": None}]
    bars = {"block": "0", "drop": 0.5, "low": 0.25, "high": 0.75, "differs": True}
    assert read_table(logged, media["charts/bars"]) == [bars]
    drawn = tmp_path / "result" / "figures" / "curve.png"
    assert (logged.files / media["figures/curve"]["path"]).read_bytes() == drawn.read_bytes()
    assert logged.summary["full/quality"] == 0.75 and logged.summary["withheld"] == ""
    (artifact,) = [artifact for artifact in logged.artifacts if artifact.type == "a kind"]
    assert artifact.name == "result" and files_of(artifact) == {"result.json", "scores.json"}
    entries = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert entries.pop("figures/curve.png").read_bytes() == drawn.read_bytes()
    content = {name: path.read_text() for name, path in entries.items()}
    assert json.loads(content["result.json"]) == {"a": [1, 2.5]} and json.loads(content["scores.json"]) == {"0": 0.5}
    assert json.loads(artifact.metadata) == {"split": "calibration"}


def test_importing_integrations_does_not_import_wandb() -> None:
    code = "import sys, lit_depth.integrations; assert 'wandb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
