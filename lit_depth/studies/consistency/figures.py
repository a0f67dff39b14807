"""Side-by-side bars and scatter of two importance measurements, and matrices of blocks and tasks."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from lit_depth.results.measures import cluster_noun, metric_label
from lit_depth.results.style import bar_lengths, new_figure, plain_axes, whole_numbers
from lit_depth.results.unit_names import label_units, skipping, unit_name, unit_places, units_noun
from lit_depth.results.verdicts import SIMULTANEOUS, WITHHELD, refusal
from lit_depth.studies.shared.importance_views import PALE, agreement_figure, is_sure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

_COLORS = ("#0072B2", "#E69F00")
_LABELS = {"quality": "Drop in quality ({metric})", "reference_logprob": "Drop in reference\nlog-probability (nats)"}
# of more pairs the matrix shows all, and the JSON file holds every number
_MAX_PAIR_FIGURES = 10


def consistency_figures(result: dict[str, Any]) -> dict[str, Callable[[], "Figure"]]:
    """Names of all figures of a result, and what draws each.

    They are ``consistency_<a>_<b>`` for each of at most 10 pairs, and ``consistency_matrix`` of several tasks.
    """
    measured = {entry["name"]: entry for entry in result["measurements"]}
    figures: dict[str, Callable[[], Figure]] = {}
    for pair in result["pairs"] if len(result["pairs"]) <= _MAX_PAIR_FIGURES else ():
        name = f"{pair['a']} {pair['b']}".replace(",", "").replace(" ", "_")
        sides = measured[pair["a"]], measured[pair["b"]]
        figures[f"consistency_{name}"] = partial(pair_figure, pair, *sides, result)
    if len(result["splits"]) == 1:
        figures["consistency_matrix"] = partial(agreement_figure, result["pairs"], list(measured))
    return figures


def pair_figure(pair: dict[str, Any], a: dict[str, Any], b: dict[str, Any], result: dict[str, Any]) -> "Figure":
    """Two measurements of the same blocks: drops side by side, and ranks against each other; for both measures."""
    blocks = a["blocks"]
    width = max(2, len(blocks) // 7)
    figure, panels = new_figure(max(10, 0.3 * len(blocks) + 5), 7, 2, 2, width_ratios=[width, 1 + width // 3])
    legend: dict[str, Patch] = {}
    for (bars, scatter), (measure, label) in zip(panels, _LABELS.items()):
        legend |= _draw_drops(bars, a, b, measure, result["confidence"])
        metric = " / ".join(dict.fromkeys(metric_label(side["metric"]) for side in (a, b)))
        bars.set_ylabel(label.format(metric=metric))
        _draw_ranks(scatter, a, b, measure)
        scatter.set_title(_agreement(pair[measure], result["confidence"]), loc="left", fontsize=10)
    panels[1][0].set_xlabel(f"Skipped {units_noun(blocks)}")
    refused = [side["name"] for side in (a, b) if refusal(side)]
    nouns = " and ".join(dict.fromkeys(map(cluster_noun, (a, b))))
    title = f"bars: {result['confidence']:.0%} {SIMULTANEOUS} by {nouns}"
    title += f", and of ranks all that may be; pale: 0 is within{skipping(result)}"
    if refused:
        title += ", or no verdict"
        title = f"No verdict: not shown to beat a constant answer on {' and on '.join(refused)}\n{title}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    panels[0][0].legend(legend.values(), legend.keys(), frameon=False, fontsize=9)
    return figure


def _draw_drops(
    axes: "Axes", a: dict[str, Any], b: dict[str, Any], measure: str, confidence: float
) -> "dict[str, Patch]":
    """Bars of both sides' drops with their intervals, and what the legend says of them."""
    from matplotlib.patches import Patch

    legend: dict[str, Patch] = {}
    for shift, color, side in zip((-0.2, 0.2), _COLORS, (a, b)):
        entries = [entry[measure] for entry in side["blocks"]]
        drops = [entry["drop"] for entry in entries]
        offsets = [place + shift for place in unit_places(a["blocks"])]
        drawn = axes.bar(offsets, drops, width=0.38, color=color)
        legend[f"{side['name']} ({side['num_samples']} samples)"] = Patch(color=color)  # a bar may be pale
        for bar, entry in zip(drawn, entries):
            bar.set_alpha(1.0 if is_sure(entry, side, confidence) else PALE)
        lengths = bar_lengths(drops, [entry["drop_simultaneous_ci"] for entry in entries])
        axes.errorbar(offsets, drops, yerr=lengths, fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
    plain_axes(axes)
    axes.axhline(0, color="#333333", linewidth=0.8)
    label_units(axes, a["blocks"])
    return legend


def _draw_ranks(axes: "Axes", a: dict[str, Any], b: dict[str, Any], measure: str) -> None:
    """Ranks of one side against those of the other, each with the ranks that it may have; equal ones share a name."""
    blocks = a["blocks"]
    x_ranks, y_ranks = ([entry[measure]["rank"] for entry in side["blocks"]] for side in (a, b))
    x_spans, y_spans = ([entry[measure]["rank_ci"] for entry in side["blocks"]] for side in (a, b))
    x_bars, y_bars = bar_lengths(x_ranks, x_spans), bar_lengths(y_ranks, y_spans)
    axes.plot([1, len(blocks)], [1, len(blocks)], ":", color="#555555", linewidth=1, zorder=0)
    axes.errorbar(x_ranks, y_ranks, y_bars, x_bars, fmt="o", color=_COLORS[0], ecolor="#dddddd", elinewidth=1)
    axes.spines[["top", "right"]].set_visible(False)
    sharing: dict[tuple[int, int], list[str]] = {}
    for entry, point in zip(blocks, zip(x_ranks, y_ranks)):
        sharing.setdefault(point, []).append(str(unit_name(entry)))
    for point, names in sharing.items():
        axes.annotate(", ".join(names), point, (4, 3), textcoords="offset points", fontsize=8, color="#333333")
    whole_numbers(axes.xaxis, axes.yaxis)
    axes.set_xlabel(f"Rank, {a['name']}")
    axes.set_ylabel(f"Rank, {b['name']}")


def _agreement(entry: dict[str, Any], confidence: float) -> str:
    if entry["spearman"] is None:
        return WITHHELD if entry["verdict"] == WITHHELD else "no order to compare"
    low, high = entry["ci"]
    free = f"free of noise: {low:.2f} to {high:.2f} ({confidence:.0%})"
    return f"Spearman {entry['spearman']:.3f}: {entry['verdict']}\n{free}"
