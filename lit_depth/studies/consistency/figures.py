"""Side-by-side bars and scatter of two importance measurements, and matrices of blocks and tasks."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from lit_depth.results.style import bar_lengths, new_figure, plain_axes, whole_numbers
from lit_depth.results.unit_names import label_units, unit_name, unit_places, units_noun
from lit_depth.results.verdicts import SIMULTANEOUS, WITHHELD, refusal
from lit_depth.studies.shared.importance_views import PALE, agreement_figure, is_sure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    from matplotlib.patches import Patch

    blocks, places = a["blocks"], unit_places(a["blocks"])
    width = max(2, len(blocks) // 7)
    figure, panels = new_figure(max(10, 0.3 * len(blocks) + 5), 7, 2, 2, width_ratios=[width, 1 + width // 3])
    legend: dict[str, Patch] = {}
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
        whole_numbers(scatter.xaxis, scatter.yaxis)
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
