"""Interactions of all pairs as a heat map, and what they predict of held-out masks against what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from lit_depth.results.against_full_views import AgainstFull
from lit_depth.results.charts.block_charts import HeatCell, heat_map
from lit_depth.results.measures import metric_label
from lit_depth.results.report import Chart
from lit_depth.results.style import COLORS, new_figure, plain_axes, withheld_title
from lit_depth.results.unit_names import skipping, unit_name
from lit_depth.results.verdicts import differs
from lit_depth.studies.shared.importance_views import is_sure, matrix_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAPS = {"quality": "interactions", "reference_logprob": "interactions_logprob"}
PREDICTION = "interactions_prediction"
_PALE = "pale: no interaction shown (Holm)"


def interaction_figures(result: Mapping[str, Any]) -> dict[str, Callable[[], Figure]]:
    """``interactions`` and ``interactions_logprob`` (heat maps), and ``interactions_prediction`` of held-out masks."""
    figures: dict[str, Callable[[], Figure]] = {name: partial(map_figure, result, each) for each, name in MAPS.items()}
    if result["second_order"]:
        figures[PREDICTION] = partial(prediction_figure, result)
    return figures


def measure_label(result: Mapping[str, Any], measure: str) -> str:
    """What is measured, with its unit."""
    return metric_label(result["metric"]) if measure == "quality" else "reference log-probability (nats)"


def interaction_charts(result: Mapping[str, Any]) -> dict[str, Chart]:
    """The heat map of each measure as an interactive chart, each pair once."""
    charts = {}
    for measure, name in MAPS.items():
        cells = []
        for pair in result["pairs"]:
            first, second = (result["units"][unit] for unit in pair["removed"])
            entry = pair[measure]
            sure = is_sure(entry, result, result["confidence"])
            cells.append(HeatCell(first, second, entry["interaction"], sure))
        words = {"title": _title(result, measure), "subtitle": _PALE, "x": "", "y": ""}
        charts[name] = heat_map(cells, words, limit=_limit(result, measure))
    return charts


def map_figure(result: Mapping[str, Any], measure: str) -> Figure:
    """What skipping a row's block and a column's costs beyond their own drops; pale where that may be nothing."""
    units = [unit for unit in range(len(result["units"])) if _is_measured(result, unit)]
    place = {unit: index for index, unit in enumerate(units)}
    values: list[list[float | None]] = [[None] * len(units) for _ in units]
    sure = [[True] * len(units) for _ in units]
    for pair in result["pairs"]:
        a, b = (place[unit] for unit in pair["removed"])
        values[a][b] = values[b][a] = pair[measure]["interaction"]
        sure[a][b] = sure[b][a] = is_sure(pair[measure], result, result["confidence"])
    names = [result["units"][unit] for unit in units]
    # few blocks make a narrow figure
    title = "\n".join([*_title(result, measure).split(", ", 1), _PALE, "above 0: the two stand in for one another"])
    figure = matrix_figure(
        values, names, names, withheld_title(title, result), _limit(result, measure), "Skipped together", sure
    )
    figure.axes[0].set_ylabel("Skipped together")
    return figure


def against_full(result: Mapping[str, Any]) -> list[AgainstFull]:
    """The model without each block, and without each pair, beside the full one.

    Results of earlier versions have no interval of a pair's drop, and tell nothing of pairs.
    """
    singles = [(str(unit_name(each, ".")), "one skipped", "p_holm", each) for each in result["blocks"]]
    pairs = [
        (" and ".join(result["units"][unit] for unit in each["removed"]), "a pair skipped", "drop_p_holm", each)
        for each in result["pairs"]
        if "agreement" in each
    ]
    return [
        AgainstFull(
            f"without {name}",
            group,
            each["quality"]["drop"],
            each["quality"]["drop_ci"],
            differs(each["quality"][p_value], result["confidence"]),
            each.get("agreement"),
        )
        for name, group, p_value, each in [*singles, *pairs]
    ]


def _is_measured(result: Mapping[str, Any], unit: int) -> bool:
    return any(unit in pair["removed"] for pair in result["pairs"])


def _title(result: Mapping[str, Any], measure: str) -> str:
    return (
        f"Interaction in {measure_label(result, measure)}, {result['task']}, {result['num_samples']} samples, "
        f"{result['split']} split{skipping(result)}"
    )


def _limit(result: Mapping[str, Any], measure: str) -> float:
    """Where the colours end: a pair may cost far more than all others, which should be told apart."""
    highest = sorted(abs(pair[measure]["interaction"]) for pair in result["pairs"])
    return highest[int(0.95 * (len(highest) - 1))] or highest[-1] or 1.0


def prediction_figure(result: Mapping[str, Any]) -> Figure:
    """Predicted against measured drops of the held-out masks, of both models; on the line a prediction is right."""
    figure, panels = new_figure(11, 5, 1, 2)
    looks = {"additive": ("sum of single drops", COLORS[1], "s"), "predicted": ("with pairs", COLORS[0], "o")}
    for axes, measure in zip(panels, MAPS):
        entries = [entry[measure] for entry in result["second_order"]["held_out"]]
        measured = [entry["drop"] for entry in entries]
        for key, (label, color, marker) in looks.items():
            points = [entry[key] for entry in entries]
            axes.plot(measured, points, marker, color=color, label=label, alpha=0.8, markersize=6)
        ends = [min(0.0, *measured), max(*measured, 1e-9)]
        axes.plot(ends, ends, ":", color="#555555", linewidth=1, zorder=0)
        plain_axes(axes)
        axes.set_xlabel(f"Measured drop in {measure_label(result, measure)}")
    panels[0].set_ylabel("Predicted drop")
    panels[0].legend(frameon=False, fontsize=9)
    title = (
        f"{len(result['second_order']['held_out'])} held-out random masks of three and more removed{skipping(result)}"
    )
    figure.suptitle(withheld_title(title, result), x=0.01, ha="left", fontsize=11)
    return figure
