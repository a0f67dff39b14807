"""Side-by-side bars and scatter of two importance measurements, and matrices of blocks and tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_depth.results.figures import bar_lengths, plain_axes
from lit_depth.results.store import save_figure
from lit_depth.results.units import label_units, unit_name, unit_places, units_noun
from lit_depth.results.verdicts import SIMULTANEOUS, WITHHELD, differs, refusal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = ("#0072B2", "#E69F00")
_LABELS = {"quality": "Drop in quality ({metric})", "reference_logprob": "Drop in reference\nlog-probability (nats)"}
# of more pairs the matrix shows all, and the JSON file holds every number
_MAX_PAIR_FIGURES = 10
PALE = 0.35  # opacity of what is no difference


def write_consistency_figures(result: dict[str, Any], folder: str | Path) -> list[Path]:
    """Draw and save the figures of ``lit-depth consistency``.

    Returns:
        Paths written: ``consistency_<a>_<b>.png`` for each of at most 10 pairs, and ``consistency_matrix.png`` of
        several tasks.
    """
    measured = {entry["name"]: entry for entry in result["measurements"]}
    figures = {}
    for pair in result["pairs"] if len(result["pairs"]) <= _MAX_PAIR_FIGURES else ():
        name = f"{pair['a']} {pair['b']}".replace(",", "").replace(" ", "_")
        figures[f"consistency_{name}.png"] = pair_figure(pair, measured[pair["a"]], measured[pair["b"]], result)
    if len(result["splits"]) == 1:
        figures["consistency_matrix.png"] = agreement_figure(result["pairs"], list(measured))
    paths = [Path(folder) / name for name in figures]
    for path, figure in zip(paths, figures.values()):
        save_figure(figure, path)
    return paths


def pair_figure(pair: dict[str, Any], a: dict[str, Any], b: dict[str, Any], result: dict[str, Any]) -> Figure:
    """Two measurements of the same blocks: drops side by side, and ranks against each other; for both measures."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    blocks, places = a["blocks"], unit_places(a["blocks"])
    figure = Figure(figsize=(max(10, 0.3 * len(blocks) + 5), 7), layout="constrained")
    width = max(2, len(blocks) // 7)
    legend: dict[str, Patch] = {}
    panels = figure.subplots(2, 2, width_ratios=[width, 1 + width // 3])
    for (bars, scatter), (measure, label) in zip(panels, _LABELS.items()):
        values = [[entry[measure]["drop"] for entry in side["blocks"]] for side in (a, b)]
        limits = [[entry[measure]["drop_simultaneous_ci"] for entry in side["blocks"]] for side in (a, b)]
        lengths = [bar_lengths(*side) for side in zip(values, limits)]
        for shift, color, side, mine, errors in zip((-0.2, 0.2), _COLORS, (a, b), values, lengths):
            offsets = [place + shift for place in places]
            label_of_side = f"{side['name']} ({side['num_samples']} samples)"
            drawn = bars.bar(offsets, mine, width=0.38, color=color)
            legend[label_of_side] = Patch(color=color)  # not one of the bars, which may be pale
            for bar, entry in zip(drawn, side["blocks"]):
                bar.set_alpha(1.0 if is_sure(entry[measure], side, result["confidence"]) else PALE)
            bars.errorbar(offsets, mine, yerr=errors, fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
        plain_axes(bars)
        bars.axhline(0, color="#333333", linewidth=0.8)
        metric = " / ".join(dict.fromkeys((a["metric"], b["metric"])))
        bars.set_ylabel(label.format(metric=metric))
        ranks = [[entry[measure]["rank"] for entry in side["blocks"]] for side in (a, b)]
        spans = [[entry[measure]["rank_ci"] for entry in side["blocks"]] for side in (a, b)]
        x_bars, y_bars = (bar_lengths(*side) for side in zip(ranks, spans))
        scatter.plot([1, len(blocks)], [1, len(blocks)], ":", color="#555555", linewidth=1, zorder=0)
        scatter.errorbar(*ranks, xerr=x_bars, yerr=y_bars, fmt="o", color=_COLORS[0], ecolor="#dddddd", elinewidth=1)
        scatter.spines[["top", "right"]].set_visible(False)
        sharing: dict[tuple[int, int], list[str]] = {}
        for entry, point in zip(blocks, zip(*ranks)):
            sharing.setdefault(point, []).append(str(unit_name(entry)))
        for point, names in sharing.items():
            scatter.annotate(", ".join(names), point, (4, 3), textcoords="offset points", fontsize=8, color="#333333")
        for axis in (scatter.xaxis, scatter.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        scatter.set_xlabel(f"Rank, {a['name']}")
        scatter.set_ylabel(f"Rank, {b['name']}")
        scatter.set_title(_agreement(pair[measure], result["confidence"]), loc="left", fontsize=10)
        label_units(bars, blocks)
    panels[1][0].set_xlabel(f"Skipped {units_noun(blocks)}")
    refused = [side["name"] for side in (a, b) if refusal(side)]
    title = f"bars: {result['confidence']:.0%} {SIMULTANEOUS} by image, and of ranks all that may be; pale: 0 is within"
    if refused:
        title += ", or no verdict"
        title = f"No verdict: not shown to beat a constant answer on {' and on '.join(refused)}\n{title}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    panels[0][0].legend(legend.values(), legend.keys(), frameon=False, fontsize=9)
    return figure


def _agreement(entry: dict[str, Any], confidence: float) -> str:
    if entry["spearman"] is None:
        return WITHHELD if entry["verdict"] == WITHHELD else "no order to compare"
    low, high = entry["ci"]
    free = f"free of noise: {low:.2f} to {high:.2f} ({confidence:.0%})"
    return f"Spearman {entry['spearman']:.3f}: {entry['verdict']}\n{free}"


def is_sure(entry: Mapping[str, Any], measured: Mapping[str, Any], confidence: float) -> bool:
    """Whether a drop is drawn as one: it differs from 0 within its family, and the model does the task.

    Args:
        entry: The drop, with ``p_holm``.
        measured: ``full`` and ``baseline`` of the same samples.
        confidence: One less the level of the tests.
    """
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

    Args:
        values: ``[rows][columns]``.
        limit: Where the colours end on either side.
        sure: ``[rows][columns]``, False where a cell is to be pale; None = nowhere.
    """
    from matplotlib.figure import Figure

    numbers = [[float("nan") if value is None else value for value in row] for row in values]
    size = max(6, 0.55 * len(column_names) + 2.5), max(2.5, 0.4 * len(row_names) + 1.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    alphas = [[1.0 if sure is None or sure[r][c] else PALE for c in range(len(row))] for r, row in enumerate(values)]
    image = axes.imshow(numbers, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", alpha=alphas)
    for row, cells in enumerate(values):
        for column, value in enumerate(cells):
            if value is not None:
                color = "white" if abs(value) > 0.6 * limit and alphas[row][column] == 1 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
    slanted = max(map(len, column_names)) > 4
    axes.set_xticks(
        range(len(column_names)), column_names, rotation=45 if slanted else 0, ha="right" if slanted else "center"
    )
    axes.set_yticks(range(len(row_names)), row_names)
    axes.set_xlabel(column_label)
    axes.set_title(title, loc="left", fontsize=11)
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    return figure
