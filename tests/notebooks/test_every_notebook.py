"""Every notebook is stored with its outputs, small, and still runs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.markdown import ROOT

nbclient = pytest.importorskip("nbclient", reason="nbclient (extra 'dev') runs the notebooks")
nbformat = pytest.importorskip("nbformat", reason="nbformat (extra 'dev') reads the notebooks")
pytest.importorskip("ipykernel", reason="ipykernel (extra 'dev') runs the notebooks")

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_BYTES = 300_000
# of a result that a run has left; tests/notebooks/test_compare_notebook.py runs it on one
OF_A_RESULT = "01_compare"
# three fifths of the full model's time, which no mask may keep while other tests run beside this one
BUDGET, ROOMY_BUDGET = "round(0.6 * full", "round(20 * full"


def code_cells(path: Path) -> list[Any]:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> set[str]:
    """What a cell shows: figures, tables, text."""
    shown = {kind for output in cell.outputs for kind in output.get("data", {})}
    return {kind.partition("/")[0] for kind in shown} | {output.output_type for output in cell.outputs}


def test_there_is_one_for_each_subject() -> None:
    assert [re.match(r"\d\d", path.name)[0] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_with_small_outputs(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES
    cells = code_cells(path)
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]
    told = [output.text for output in outputs if output.get("name") == "stderr"]
    assert all(line.startswith("questions.csv: ") for text in told for line in text.splitlines())  # how it is read
    text = path.read_text(encoding="utf-8")
    assert str(Path.home()) not in text and "/tmp/" not in text


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One process for all: importing torch and the rest takes longer than most notebooks."""
    from jupyter_client import KernelManager

    patch = pytest.MonkeyPatch()
    patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
    patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("results")))
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env={**os.environ, "PYTHONPATH": str(ROOT)})
    yield manager
    manager.shutdown_kernel(now=True)
    patch.undo()


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.stem != OF_A_RESULT], ids=lambda path: path.stem
)
def test_it_runs_and_shows_what_is_stored(path: Path, kernel: Any) -> None:
    stored = code_cells(path)
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace(BUDGET, ROOMY_BUDGET)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    client = nbclient.NotebookClient(notebook, km=kernel, timeout=300)
    client.execute(reset_kc=True)
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"][1:]
    assert [kinds(cell) for cell in ran] == [kinds(cell) for cell in stored]
