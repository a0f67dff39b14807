"""The coverage benchmark: the intervals it compares with are the published ones, and its tables come into the page."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def coverage(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "environment", raising=False)
    spec = importlib.util.spec_from_file_location("coverage_benchmark", BENCHMARKS / "coverage.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # processes look for functions there
    spec.loader.exec_module(module)
    return module


def test_bca_is_that_of_scipy(coverage):
    values = np.random.default_rng(0).exponential(size=(2, 60))
    low, high = coverage.bca(values)
    for row, limits in zip(values, zip(low, high)):
        reference = stats.bootstrap((row,), np.mean, n_resamples=20_000, rng=np.random.default_rng(1))
        assert limits == pytest.approx(tuple(reference.confidence_interval), abs=0.15 * reference.standard_error)


def test_tango_solves_its_equation(coverage):
    """Without any difference its limits are z^2 / (n + z^2); with some they are mirrored where signs are."""
    z = stats.norm.ppf(0.975)
    rows = np.zeros((3, 50))
    rows[1, :14], rows[2, :14] = [1.0] * 12 + [-1.0] * 2, [-1.0] * 12 + [1.0] * 2
    low, high = coverage.tango(rows)
    assert (low[0], high[0]) == pytest.approx((-(z**2) / (50 + z**2), z**2 / (50 + z**2)))
    assert (low[1], high[1]) == pytest.approx((-high[2], -low[2])) and 0 < low[1] < 0.2 < high[1]


def test_drawn_means_are_the_ones_named(coverage):
    generator = np.random.default_rng(0)
    for draw, truth in (coverage.differences(0.3, 0.75, True), coverage.scores(0.3, True), coverage.scores(0.95, True)):
        values = coverage.draw_clusters(generator, draw, 500, 64)
        assert values.mean() == pytest.approx(truth, abs=0.02)
        images = values.reshape(500, 16, 4)
        # two samples of an image share its draw with probability 0.8 ** 2
        assert np.corrcoef(images[..., 0].ravel(), images[..., 1].ravel())[0, 1] == pytest.approx(0.64, abs=0.05)


@pytest.mark.slow
def test_a_quick_run_fills_the_page(coverage, monkeypatch, tmp_path):
    page, output = tmp_path / "page.md", tmp_path / "coverage.json"
    page.write_text(f"before\n{coverage.MARKS[0]}\nold\n{coverage.MARKS[1]}\nafter\n")
    command = ["coverage", "--quick", "--processes", "1", "--docs", str(page), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    coverage.main()
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| binary, clusters of 4 | 64 |" in text
    result = json.loads(output.read_text())
    assert len(result["differences"]) == 8 * (5 + 4 + 4) and all(cell["covers"] for cell in result["differences"])
    for cell in (cell for cell in result["differences"] if cell["split"] == "3 losses to 1 gain"):
        units = cell["num_samples"] // (4 if cell["clustered"] else 1)
        if units * cell["discordance"] >= 5:
            assert cell["narrow"]
        if cell["discordance"] == 0:  # the rule of three on both sides, over Clopper and Pearson's limit
            assert cell["width_ratio"] == pytest.approx(
                2 * (1 - 0.05 ** (1 / units)) / (1 - 0.025 ** (1 / units)), abs=2e-3
            )
    assert len(result["exact"]) == 4 * 2 and all(cell["least"] >= 0.945 for cell in result["exact"])
