"""What importance and consistency tell and draw alike: what was measured, and how closely two measurements agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_depth.results.charts.block_charts import HeatCell, heat_map
from lit_depth.results.measures import cluster_noun, count_samples, describe_measure, metric_label
from lit_depth.results.report import Chart, Section, Table
from lit_depth.results.style import new_figure
from lit_depth.results.table import Cell, format_interval, format_p_value
from lit_depth.results.verdicts import (
    SIMULTANEOUS,
    WITHHELD,
    describe_constant,
    differs,
    refusal,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALE = 0.35  # opacity of what is no difference
AGREEMENT = (
    "Rank correlation (Spearman) between two orders of the blocks as measured; the interval of the correlation that "
    "measurements without noise would show; the p-value of no correlation. 'samples' would put the interval above "
    "{threshold:g}, if the two agree as closely as these samples allow."
)
AGREEMENT_HEADERS = ("a", "b", "drop in", "spearman", "noise-free", "p", "agreement", "samples")


def headline(task: Mapping[str, Any], result: Mapping[str, Any], ranked: bool = True) -> str:
    """What was measured and how well the full model did, in a sentence or two; ``ranked``: a table of ranks follows."""
    full = task["full"]
    split = task.get("split") or result["split"]
    ranks = (
        " Rank 1 costs most; 'may be' are the ranks that the samples leave open."
        if ranked and not refusal(task)
        else ""
    )
    trained = " Released checkpoints were trained on these very questions." if task["in_training_mixture"] else ""
    return (
        f"{metric_label(task['metric'])} on {task['task']} ({split} split), {count_samples(task, task)} "
        f"({task['num_bad_samples']} bad), {result['confidence']:.0%} {SIMULTANEOUS} by "
        f"{cluster_noun(task)}. Full model {full['quality']:.3f} {format_interval(full['quality_ci'], '')}."
        f"{describe_measure(task)}{describe_constant(task)}{ranks}{trained}"
    )


def agreement_section(
    heading: str, pairs: Sequence[Mapping[str, Any]], threshold: float, figures: Sequence[str] = (), text: str = ""
) -> Section:
    """How closely two measurements agree, one row per pair and measure; ``text`` stands below the explanation."""
    explained = "\n\n".join(filter(None, [AGREEMENT.format(threshold=threshold), text]))
    return Section(heading, explained, Table(AGREEMENT_HEADERS, _agreement_rows(pairs)), figures)


def _agreement_rows(pairs: Sequence[Mapping[str, Any]]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for pair in pairs:
        for measure, label in (("quality", "quality"), ("reference_logprob", "log-prob")):
            entry = pair[measure]
            limits, p_value = format_interval(entry["ci"]) or "not estimable", format_p_value(entry["p_value"])
            needed = " / ".join(map(str, entry["samples_needed"] or ())) or None
            rows.append([pair["a"], pair["b"], label, entry["spearman"], limits, p_value, entry["verdict"], needed])
    return rows


def is_sure(entry: Mapping[str, Any], measured: Mapping[str, Any], confidence: float) -> bool:
    """Whether a drop is drawn as one: it differs from 0 within its family, and the model does the task."""
    return differs(entry["p_holm"], confidence) and refusal(measured) is None


def agreement_figure(pairs: Sequence[dict[str, Any]], names: Sequence[str]) -> Figure:
    """Rank correlation of the drops in quality between all tasks."""
    values: list[list[float | None]] = [[1.0 if a == b else None for b in names] for a in names]
    sure = [[True for _ in names] for _ in names]
    for pair in pairs:
        a, b = names.index(pair["a"]), names.index(pair["b"])
        values[a][b] = values[b][a] = pair["quality"]["spearman"]
        sure[a][b] = sure[b][a] = pair["quality"]["verdict"] != WITHHELD
    title = "Rank correlation of block importance between tasks"
    if not all(map(all, sure)):
        title += "\npale: no verdict, not shown to beat a constant answer on one of the two"
    return matrix_figure(values, names, names, title, 1.0, sure=sure)


def agreement_chart(pairs: Sequence[Mapping[str, Any]]) -> Chart:
    """`agreement_figure` as an interactive chart, each pair once; measurements against themselves are left out."""
    cells = [
        HeatCell(pair["a"], pair["b"], pair["quality"]["spearman"], pair["quality"]["verdict"] != WITHHELD)
        for pair in pairs
    ]
    title = "Rank correlation of block importance"
    words = {"title": title, "subtitle": "Spearman; pale: no verdict", "x": "", "y": ""}
    return heat_map(cells, words, limit=1.0)


def matrix_figure(
    values: Sequence[Sequence[float | None]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    title: str,
    limit: float,
    column_label: str = "",
    sure: Sequence[Sequence[bool]] | None = None,
) -> Figure:
    """Numbers in coloured cells, blue below zero and red above; what is not known stays white.

    The colours end at ``limit`` on either side; points of the colour bar show where numbers lie beyond. A cell that is
    not ``sure`` is pale.
    """
    numbers = [[float("nan") if value is None else value for value in row] for row in values]
    figure, axes = new_figure(max(6, 0.55 * len(column_names) + 2.5), max(2.5, 0.4 * len(row_names) + 1.5))
    alphas = [[1.0 if sure is None or sure[r][c] else PALE for c in range(len(row))] for r, row in enumerate(values)]
    image = axes.imshow(numbers, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", alpha=alphas)
    for row, cells in enumerate(values):
        for column, value in enumerate(cells):
            if value is not None:
                color = "white" if abs(value) > 0.6 * limit and alphas[row][column] == 1 else "black"
                axes.text(column, row, f"{value:z.2f}", ha="center", va="center", fontsize=8, color=color)
    rotation, ha = (45, "right") if max(map(len, column_names)) > 4 else (0, "center")
    axes.set_xticks(range(len(column_names)), column_names, rotation=rotation, ha=ha)
    axes.set_yticks(range(len(row_names)), row_names)
    axes.set_xlabel(column_label)
    axes.set_title(title, loc="left", fontsize=11)
    known = [value for row in values for value in row if value is not None]
    low, high = min(known, default=0.0) < -limit, max(known, default=0.0) > limit
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((low, high), "neither")
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, extend=extend)
    return figure
