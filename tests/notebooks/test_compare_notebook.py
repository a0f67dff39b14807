"""The notebook runs from a result on disk to the four answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_depth.studies.shared.comparison_schema import validate_comparison
from lit_depth.results.store import write_json

nbclient = pytest.importorskip("nbclient", reason="nbclient (extra 'dev') runs the notebooks")
nbformat = pytest.importorskip("nbformat", reason="nbformat (extra 'dev') reads the notebooks")
pytest.importorskip("ipykernel", reason="ipykernel (extra 'dev') runs the notebooks")

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_compare.ipynb"


def execute(results: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Outputs of all cells, run in the notebook's folder."""
    monkeypatch.setenv("LIT_DEPTH_RESULTS", str(results))
    monkeypatch.setenv("IPYTHONDIR", str(results.parent / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def text_of(output: Any) -> str:
    return output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", "")


def write(comparison: dict[str, Any], folder: Path) -> Path:
    write_json(folder / "m5_mask_strategy_comparison.json", validate_comparison(comparison))
    return folder


@pytest.mark.slow
def test_the_four_answers_are_shown(
    comparison: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, answer in enumerate(comparison["answers"].values()):
        answer["text"] = f"This is the text of answer {index}."
    outputs = execute(write(comparison, tmp_path / "result"), monkeypatch)
    shown = "\n".join(map(text_of, outputs))
    for answer in comparison["answers"].values():
        assert f"? {answer['answer'].upper()}.\n{answer['text']}" in shown
    # quality against blocks, importance bars
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert "Blocks by importance, highest first: 0 1 2 3 4" in shown
    tables = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    for strategy in comparison["strategies"]:
        assert f"<td>{strategy['quality']:.3f}</td>" in tables[0]
    (pair,) = comparison["comparisons"]
    for number in (f"{pair['difference']:.3f}", "[+0.150, +0.210]", f"{pair['p_holm']}"):
        assert f"<td>{number}</td>" in tables[1]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@pytest.mark.slow
def test_a_comparison_without_importance_random_and_latency_is_shown(
    comparison: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison["strategies"] = [s for s in comparison["strategies"] if s["policy"] == "prefix"]
    for entry in (comparison["full"], *comparison["strategies"]):
        entry["latency_ms"] = None
    comparison["importance"] = {"source": "not used", "num_samples": 0, "scores": {}, "intervals": None}
    comparison["comparisons"] = []
    shown = "\n".join(map(text_of, execute(write(comparison, tmp_path / "result"), monkeypatch)))
    assert "This comparison used no importance scores." in shown
    assert comparison["answers"]["depth_is_a_scalar"]["text"] in shown


@pytest.mark.slow
def test_without_a_result_it_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(nbclient.exceptions.CellExecutionError) as caught:
        execute(tmp_path / "nothing", monkeypatch)
    assert caught.value.ename == "SystemExit"
    assert caught.value.evalue.startswith("There is no result at ") and "run `lit-depth compare`" in caught.value.evalue
    assert caught.value.evalue.count(". ") == 0
