"""Latency against active blocks, drawn from the result of ``lit-depth latency``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lit_depth.results.charts.latency_chart import FittedLine, StageTime, latency_vs_blocks
from lit_depth.results.latency_lines import Time, latency_lines
from lit_depth.results.report import Chart
from lit_depth.results.style import COLORS, MARKERS, STAGES, Stage, new_figure, plain_axes, whole_numbers
from lit_depth.results.unit_names import active_blocks

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
            "x": active_blocks(result, result["num_blocks"]),
            "y": f"ms per {'decoded ' if unit == 'token' else ''}{unit}",
        }
        if times:
            charts[f"latency_per_{unit}"] = latency_vs_blocks(times, lines, result["num_blocks"], words)
    return charts


def latency_figure(result: dict[str, Any]) -> "Figure":
    """Median of every stage against the number of active blocks, with the fitted line and the ideal one.

    The ideal total is that of the full model times the share of active blocks: what skipping would give if nothing
    else took time. Of several policies there is one line each instead.
    """
    policies = list(dict.fromkeys(name for entry in result["configurations"] for name in entry.get("policies", ())))
    if len(set(policies) - {"full"}) > 1:
        return _policy_figure(result, [name for name in policies if name != "full"])
    figure, (request, token) = new_figure(10, 5.6, 1, 2)
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
        axes.set_xlabel(active_blocks(result, num_blocks).capitalize())
        axes.set_ylabel(f"Median ms per {unit}; bars to P95")
        axes.set_xlim(0, num_blocks + 0.5)
        axes.set_ylim(bottom=0)  # a saving is read as a share of the height
        whole_numbers(axes.xaxis)
        if axes.get_legend_handles_labels()[0]:  # a single token takes no decode step
            # below the axes: inside it would lie on bars, which reach as high as the machine was disturbed
            axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(-0.12, -0.13))
    figure.suptitle(_title(result), x=0.01, ha="left", fontsize=11)
    return figure


def _policy_figure(result: dict[str, Any], policies: Sequence[str]) -> "Figure":
    """One line per policy with intervals of the medians; of several masks at one count the mean of either."""
    looks = list(zip(COLORS, MARKERS))
    words = {
        "title": _title(result),
        "bars": f"bars: {result['confidence']:.0%} intervals of the median",
        "x": active_blocks(result, result["num_blocks"]).capitalize(),
    }
    full = next(entry for entry in result["configurations"] if entry["num_active_blocks"] == result["num_blocks"])
    return latency_lines(
        {
            policy: _times([each for each in result["configurations"] if policy in each["policies"]])
            for policy in policies
        },
        {policy: looks[index % len(looks)] for index, policy in enumerate(policies)},
        _times([full])[0],
        words,
    )


def _times(configurations: Sequence[dict[str, Any]]) -> list[Time]:
    """Medians and their limits by number of active blocks."""
    by_count: dict[int, list[dict[str, Any]]] = {}
    for entry in configurations:
        by_count.setdefault(entry["num_active_blocks"], []).append(entry)
    found = []
    for count, entries in sorted(by_count.items()):
        stages = [stage for stage in entries[0]["latency_limits_ms"] if entries[0]["latency_ms"][stage]]
        medians = {stage: _mean([entry["latency_ms"][stage]["P50"] for entry in entries]) for stage in stages}
        limits = {
            stage: [_mean([entry["latency_limits_ms"][stage][end] for entry in entries]) for end in (0, 1)]
            for stage in stages
        }
        found.append(Time(count, medians, limits))
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _title(result: dict[str, Any]) -> str:
    requests = f"{result['num_requests']} requests of batch size {result['batch_size']}"
    tokens = f", {result['new_tokens']} new tokens" if "new_tokens" in result else ""
    decoding = f", {on}" if (on := result.get("decoded_on")) else ""
    return f"{result['task']}, {requests}{tokens}, {result['device']}{decoding}"
