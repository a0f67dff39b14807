"""Latency against active blocks, drawn from the result of ``lit-depth latency``."""

from typing import TYPE_CHECKING, Any

from lit_depth.results.charts.latency_chart import FittedLine, StageTime, latency_vs_blocks
from lit_depth.results.report import Chart
from lit_depth.results.style import STAGES, Stage, new_figure, plain_axes, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TOKEN: Stage = "decode_per_token"


def latency_charts(result: dict[str, Any]) -> dict[str, Chart]:
    """The figure as interactive charts: of a request, and of a decoded token where one is decoded."""
    configurations, fits = result["configurations"], result["fits"]
    charts = {}
    for unit, stages in {"request": [each for each in STAGES if each != _TOKEN], "token": [_TOKEN]}.items():
        known = [each for each in stages if all(entry["latency_ms"][each] for entry in configurations)]
        times = [
            StageTime(stage, entry["num_active_blocks"], times["P50"], [times["P50"], max(times["P50"], times["P95"])])
            for stage in known
            for entry in configurations
            for times in [entry["latency_ms"][stage]]
        ]
        lines = [FittedLine(each, fits[each]["intercept"], fits[each]["slope"]) for each in known if each in fits]
        words = {
            "title": _title(result),
            "subtitle": "points: medians, bars to P95; dashed: fitted lines",
            "x": f"active blocks (of {result['num_blocks']})",
            "y": f"ms per {'decoded ' if unit == 'token' else ''}{unit}",
        }
        if times:
            charts[f"latency_per_{unit}"] = latency_vs_blocks(times, lines, result["num_blocks"], words)
    return charts


def latency_figure(result: dict[str, Any]) -> "Figure":
    """Median of every stage against the number of active blocks, with the fitted line and the ideal one.

    The ideal total is that of the full model times the share of active blocks: what skipping would give if nothing
    else took time.
    """
    figure, (request, token) = new_figure(10, 5, 1, 2)
    num_blocks, configurations = result["num_blocks"], result["configurations"]
    counts = [entry["num_active_blocks"] for entry in configurations]
    for stage, (label, color, marker) in STAGES.items():
        axes = token if stage == _TOKEN else request
        times = [entry["latency_ms"][stage] for entry in configurations]
        if any(entry is None for entry in times):
            continue
        medians = [entry["P50"] for entry in times]
        bars = [[0.0] * len(times), [max(0.0, entry["P95"] - entry["P50"]) for entry in times]]
        axes.errorbar(counts, medians, yerr=bars, fmt=marker, color=color, markersize=5, elinewidth=1, label=label)
        if stage in result["fits"]:
            line, ends = result["fits"][stage], [0, num_blocks]
            fit = "" if line["r2"] is None else f", R² {line['r2']:.3f}"
            text = f"{line['intercept']:.1f} {line['slope']:+.2f} per block{fit}"
            heights = [line["intercept"] + line["slope"] * end for end in ends]
            axes.plot(ends, heights, "--", color=color, linewidth=1, label=f"{label}: {text}")
    full = next(entry for entry in configurations if entry["num_active_blocks"] == num_blocks)
    top = full["latency_ms"]["total"]["P50"]
    request.plot([0, num_blocks], [0, top], ":", color="#888888", linewidth=1.5, label="total, ideal k/L")
    for axes, unit in ((request, "request"), (token, "decoded token")):
        plain_axes(axes)
        axes.set_xlabel(f"Active blocks (of {num_blocks})")
        axes.set_ylabel(f"Median time per {unit} (ms); bars to P95")
        axes.set_xlim(0, num_blocks + 0.5)
        axes.set_ylim(bottom=0)  # a saving is read as a share of the height
        whole_numbers(axes.xaxis)
        if axes.get_legend_handles_labels()[0]:  # a single token takes no decode step
            axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.suptitle(_title(result), x=0.01, ha="left", fontsize=11)
    return figure


def _title(result: dict[str, Any]) -> str:
    requests = f"{result['num_requests']} requests of batch size {result['batch_size']}"
    return f"{result['task']}, {requests}, {result['device']}"
