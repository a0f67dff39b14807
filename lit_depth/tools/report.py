"""One page of one or many results: ``lit-depth report DIR...``."""

from __future__ import annotations

import os
import tempfile
import webbrowser
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from lit_depth.functional.arguments import check_range, check_share
from lit_depth.results.changed_samples import MOST
from lit_depth.results.model_names import changed_knobs, who_skips
from lit_depth.results.page import PAGE, RunPart, write_parts
from lit_depth.results.report import Report
from lit_depth.results.store import prepare_folder, save_figure
from lit_depth.results.table_files import write_tables
from lit_depth.results.terminal import tell
from lit_depth.studies.overview.analysis import compare_models, read_scores
from lit_depth.studies.overview.equal_cost import compare_at_equal_cost, read_curves
from lit_depth.studies.overview.folders import Stored, read_folders
from lit_depth.studies.overview.report import report
from lit_depth.studies.shared.dashboards import check_arguments, publish
from lit_depth.studies.shared.publish import as_text, draw
from lit_depth.studies.shared.run_page import run_part
from lit_depth.tool_options import parser_of


def main(argv: Sequence[str]) -> None:
    """Write one page of one or many results, with tests between models on the same samples.

    Raises:
        ValueError: If a folder holds no result that can be read; the message says why.
    """
    given = parser_of("report").parse_args(argv)
    check_range(0, MOST, samples=given.samples)
    check_share(confidence=given.confidence)
    check_arguments(given)
    runs, remarks = read_folders([Path(folder).expanduser() for folder in given.folders])
    out = Path(given.out).expanduser() if given.out else (runs[0].folder if len(runs) == 1 else Path()) / PAGE
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out: expected the name of an HTML file, such as {PAGE}, got {out}")
    prepare_folder(out.parent)
    with tempfile.TemporaryDirectory() as drawn:
        parts = [
            run_part(each.folder, each.report, _figures(each, Path(drawn) / str(index)), each.result, given.samples,
                     _link(each.folder, out))
            for index, each in enumerate(runs)
        ]  # fmt: skip
        told = runs[0].report if len(runs) == 1 else overview(runs, parts, given.confidence, remarks)
        is_own = len(runs) == 1 and out.parent.resolve() == runs[0].folder.resolve()
        tables = write_tables(told, out.with_name("tables" if is_own else f"{out.stem}_tables"))
        figures = draw(told, out.with_name(f"{out.stem}_figures")) if told.figures and len(runs) > 1 else {}
        page = write_parts(out, told, parts, figures)
    written = [page, *tables, *figures.values()]
    shown = as_text(told) if len(runs) > 1 else told.headline
    published = publish([each.folder for each in runs], given)
    text = [shown, "", "written:", *(f"  {path}" for path in written), *published]
    tell("\n".join(text), {"page": page, "runs": len(runs)} | ({"wandb": published} if published else {}))
    if given.open:
        webbrowser.open(page.resolve().as_uri())


def overview(runs: Sequence[Stored], parts: Sequence[RunPart], confidence: float, remarks: Sequence[str]) -> Report:
    """What is told of several runs together: tests between models, and what each run found."""
    labels = name_models(runs)
    scores = [read_scores(run, label) for run, label in zip(runs, labels)]
    curves = [read_curves(run, label) for run, label in zip(runs, labels)]
    pairs, costs = compare_models(scores, confidence), compare_at_equal_cost(scores, curves, confidence)
    return report(runs, labels, pairs, [part.changes for part in parts], confidence, remarks, costs, curves)


def name_models(runs: Sequence[Stored]) -> list[str]:
    """Name of each run's model; of other weights under one name also the beginning of their fingerprint.

    Where any run of a model has tokens or forwards that skip no blocks, every run of that model says who skips.
    """
    names = []
    for run in runs:
        arguments, model = run.arguments, run.manifest.get("model") or {}
        name = Path(str(arguments.get("model.checkpoint", arguments.get("checkpoint", "-")))).name
        revision = arguments.get("model.revision")
        told = ", ".join([f"{name} @ {revision}" if revision else name, *changed_knobs(arguments)])
        names.append((told, str(model.get("weights", "-"))))
    several = Counter(name for name, _ in set(names))
    labels = [f"{name} ({weights[:6]})" if several[name] > 1 else name for name, weights in names]
    skipping = [who_skips(run.arguments) for run in runs]
    differing = {label for label, words in zip(labels, skipping) if words != who_skips({})}
    return [f"{label}, {words}" if label in differing else label for label, words in zip(labels, skipping)]


def _figures(run: Stored, folder: Path) -> Mapping[str, Path]:
    """The figures of a run where all lie beside its result, else drawn anew into a folder."""
    own = {name: run.folder / "figures" / f"{name}.png" for name in run.report.figures}
    if all(path.is_file() and path.with_suffix(".svg").is_file() for path in own.values()):
        return own
    drawn = {name: folder / f"{name}.png" for name in run.report.figures}
    for name, path in drawn.items():
        save_figure(run.report.figures[name](), path)
    return drawn


def _link(folder: Path, out: Path) -> str | None:
    """The run's own page, from where the page lies; None where it is that page, or there is none."""
    own = folder / PAGE
    if not own.is_file() or own.resolve() == out.resolve():
        return None
    return quote(os.path.relpath(own.resolve(), out.resolve().parent).replace(os.sep, "/"))
