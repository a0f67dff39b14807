"""A report is told alike everywhere, and its result is the last file that is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lit_depth.results import store
from lit_depth.results.report import Curves, Report, Section, Table
from lit_depth.studies.shared.publish import publish, sign_figures


def figure() -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))


def report(**options: Any) -> Report:
    sections = [
        Section("Quality", "By blocks.", Table(["blocks", "quality"], [[4, 0.5]]), ["curve"]),
        Section("Details", "On the page only.", printed=False),
    ]
    options = {
        "figures": {"curve": figure},
        "files": {"more.json": [1]},
        "scalars": {"full": 0.75, "word": "x"},
    } | options
    return Report("Title", "Two questions.", sections, "test", **options)


def tell(folder: Path, loggers: list[Any] = [], **options: Any) -> None:  # noqa: B006
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(loggers=loggers, strategy=strategy)
    run = SimpleNamespace(trainer=trainer, folder=folder, arguments={"name": "me"})
    publish(run, report(**options), "result.json", {"a": 1})


def test_the_terminal_shows_what_is_printed_and_every_file(tmp_path, capsys):
    tell(tmp_path)
    out = capsys.readouterr().out
    assert "Two questions." in out and "By blocks." in out and "4    0.500" in out and "On the page only" not in out
    named = [Path(line.strip()) for line in out.partition("written:")[2].splitlines() if line.strip()]
    assert {path.relative_to(tmp_path).as_posix() for path in named} == {
        "result.json",
        "more.json",
        "figures/curve.png",
        "tables",
        "report.html",
    }
    assert all(path.stat().st_size for path in named)
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": 1}


def test_the_result_is_written_last(tmp_path, monkeypatch):
    written: list[str] = []
    original = store.os.replace
    monkeypatch.setattr(store.os, "replace", lambda a, b: (written.append(Path(b).name), original(a, b)))
    tell(tmp_path)
    assert written[-1] == "result.json" and set(written) == {
        *("curve.png", "curve.svg", "curve.pdf", "quality.csv"),
        *("page.json", "report.html", "more.json", "result.json"),
    }


def test_a_figure_of_an_earlier_run_goes(tmp_path):
    tell(tmp_path, figures={"curve": figure, "latency": figure})
    tell(tmp_path)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"curve.png", "curve.svg", "curve.pdf"}


def test_nothing_is_left_of_a_figure_that_cannot_be_drawn(tmp_path):
    def broken() -> Any:
        raise ValueError("no such block")

    with pytest.raises(ValueError, match="no such block"):
        tell(tmp_path, figures={"curve": broken})
    assert not list(tmp_path.rglob("*.json"))


def test_any_logger_gets_the_numbers(tmp_path):
    logger = CSVLogger(tmp_path / "logs")
    curves = Curves(
        "num_active_blocks", [{"num_active_blocks": 4, "quality": 0.5}, {"num_active_blocks": 8, "quality": 0.7}]
    )
    tell(tmp_path / "run", [logger], curves=curves)
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["quality"]) for row in rows if row["quality"]] == [("4", "0.5"), ("8", "0.7")]
    assert [row["full"] for row in rows if row["full"]] == ["0.75"]


def test_figures_name_the_model_and_its_revision():
    texts = {}
    for checkpoint, revision in (("org/model", "v1"), ("/some/where/checkpoint", None)):
        signed = sign_figures(report(), {"model.checkpoint": checkpoint, "model.revision": revision})
        texts[checkpoint] = [text.get_text() for text in signed.figures["curve"]().texts]
    assert texts == {"org/model": ["model: org/model @ v1"], "/some/where/checkpoint": ["model: checkpoint"]}
    asked = {"model.checkpoint": "org/model", "model.experts_per_token": 1, "model.max_crops": 4}
    (text,) = sign_figures(report(), asked).figures["curve"]().texts
    assert text.get_text() == "model: org/model, 1 expert per token, at most 4 crops"
    assert sign_figures(report(), {}).figures == {"curve": figure}
