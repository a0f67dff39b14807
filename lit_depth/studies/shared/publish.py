"""How a result is told: printed, drawn, written as a page, logged; its file is the last one written."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_depth.results.model_names import model_changes, model_name
from lit_depth.results.page import PAGE, write_parts
from lit_depth.results.report import Report
from lit_depth.results.store import save_figure, write_json
from lit_depth.results.style import GREY
from lit_depth.results.table import format_table
from lit_depth.results.table_files import write_tables
from lit_depth.results.terminal import tell
from lit_depth.studies.shared.loggers import log_report
from lit_depth.studies.shared.run_folder import Run
from lit_depth.studies.shared.run_page import find_run_changes, keep_samples, run_part

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def publish(run: Run, report: Report, name: str, result: Mapping[str, Any]) -> None:
    """Tell a result in every way at once, and write its file last: whoever sees it may rely on all the rest.

    Raises:
        ValueError: If a file cannot be written.
    """
    folder, report = run.folder, sign_figures(report, run.arguments)
    figures = draw(report, folder / "figures")
    tables = write_tables(report, folder / "tables")
    for path in set((folder / "tables").glob("*.csv")).difference(tables):
        path.unlink()
    changes = find_run_changes(folder, run.arguments)
    keep_samples(run, changes)
    page = write_parts(folder / PAGE, report, [run_part(folder, report, figures, result, changes=changes)])
    for file, content in report.files.items():
        write_json(folder / file, content)
    for logger in run.trainer.loggers:
        log_report(logger, report, folder, name, result)
    write_json(folder / name, result)
    files = (name, *report.files, *report.written, *report.unlogged)
    written = [*(folder / file for file in files), *figures.values(), *([folder / "tables"] if tables else []), page]
    tell("\n".join([as_text(report), "", "written:", *(f"  {path}" for path in written)]), result)


def sign_figures(report: Report, arguments: Mapping[str, Any]) -> Report:
    """The report with the name of the model, and what was asked for of it, in a corner of each figure, if known."""
    if arguments.get("model.checkpoint") is None:
        return report
    text = f"model: {', '.join([model_name(arguments), *model_changes(arguments)])}"
    return replace(report, figures={key: partial(_signed, figure, text) for key, figure in report.figures.items()})


def _signed(figure: "Callable[[], Figure]", text: str) -> "Figure":
    drawn = figure()
    drawn.text(0.995, 0.004, text, ha="right", va="bottom", fontsize=6.5, color=GREY)
    return drawn


def draw(report: Report, folder: Path) -> dict[str, Path]:
    """Save the figures of a report as PNG, SVG and PDF; what an earlier run drew, and this one does not, is removed.

    Returns:
        The PNG files by name.
    """
    paths = {name: folder / f"{name}.png" for name in report.figures}
    for path in [*folder.glob("*.png"), *folder.glob("*.svg"), *folder.glob("*.pdf")]:
        if path.stem not in paths:
            path.unlink()
    for name, figure in report.figures.items():
        save_figure(figure(), paths[name])
    return paths


def as_text(report: Report) -> str:
    """What the terminal shows of a report.

    >>> from lit_depth.results.report import Section, Table
    >>> quality = Section("Quality", "By mask.", Table(["blocks", "quality"], [[4, 0.5]]))
    >>> print(as_text(Report("A title", "16 questions.", [quality, Section("Unprinted", "x", printed=False)], "test")))
    <BLANKLINE>
    16 questions.
    <BLANKLINE>
    By mask.
    <BLANKLINE>
    blocks  quality
    ------  -------
         4    0.500
    """
    parts = [report.headline]
    for section in report.sections:
        if section.printed:
            parts += [section.text] if section.text else []
            parts += [format_table(section.table.rows, section.table.headers)] if section.table else []
    return "\n" + "\n\n".join(part.strip() for part in parts if part.strip())
