"""The beam of ``lit-depth search`` as a tree, and what removing more blocks costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_depth.results.charts.quality_charts import Mark, quality_vs_blocks
from lit_depth.results.charts.tree_chart import TreeNode, search_tree
from lit_depth.results.measures import metric_label, quality_limits
from lit_depth.results.report import Chart
from lit_depth.results.style import (
    COLORS,
    GREY,
    MARKERS,
    draw_constant,
    legend,
    line_with_bars,
    new_figure,
    plain_axes,
    withheld_title,
)
from lit_depth.results.unit_names import ranges, skipping
from lit_depth.results.verdicts import SIMULTANEOUS, constant_label, mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_Places = dict[tuple[int, ...], tuple[float, float]]  # x and y of each ablation

# ablations of a level that are drawn, the best ones
_MAX_SHOWN = 60
_BOLD = ", the best in bold"
_PALE, _GREY, _DARK = "#e4e4e4", "#b5b5b5", "#222222"
FINDERS = ("search", "greedy", "importance order", "span")


def ablation_label(removed: Sequence[int], units: Sequence[str]) -> str:
    """What an ablation is called; nothing where nothing is removed.

    >>> ablation_label([1, 2], ["0.attn", "0.mlp", "1.attn", "1.mlp"])
    'without 0.mlp, 1.attn'
    """
    if not removed:
        return ""
    if all(units[unit] == str(unit) for unit in removed):
        return f"without {ranges(removed, ', ')}"
    return f"without {', '.join(units[unit] for unit in removed)}"


def tree_figure(result: Mapping[str, Any]) -> Figure:
    """Every ablation that was looked at, one column per number of removed blocks, beside the one that it extends.

    Colour is the drop on the calibration split. Those that racing dropped are small and grey: their means are over
    fewer samples.
    """
    levels = [level["ablations"][:_MAX_SHOWN] for level in result["levels"]]
    places = _places(result["levels"], levels)
    beam = {(), *(tuple(removed) for level in result["levels"] for removed in level["beam"])}
    tallest = max(map(len, levels))
    figure, axes = new_figure(max(7.0, 2.2 + 2.6 * len(levels)), max(4.0, 0.15 * tallest + 1.4))
    ablations = [ablation for shown in levels for ablation in shown]
    _draw_edges(axes, ablations, places, beam)
    colored = _draw_nodes(axes, ablations, places, beam, result["calibration"]["full"]["score"])
    best = {tuple(level["beam"][0]) for level in result["levels"]}
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    beside = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "fontsize": 8, "bbox": box, "zorder": 5}
    for removed in sorted(beam - {()}):
        label, weight = ablation_label(removed, result["units"]), "bold" if removed in best else "normal"
        axes.annotate(label, places[removed], weight=weight, **beside)
    names = ["nothing removed", *(f"{level['num_removed']} removed" for level in result["levels"])]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.2, len(levels) + 0.75)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.set_title(_tree_title(result, levels), loc="left", fontsize=11)
    of = "accuracy" if result["rank_by"] == "accuracy" else "reference probability"
    figure.colorbar(colored, ax=axes, label=f"Drop in {of} (calibration)", shrink=0.6, extend="max")
    return figure


def search_charts(result: Mapping[str, Any]) -> dict[str, Chart]:
    """The tree, and quality against the number of active units by finder, as interactive charts."""
    return {"search_tree": _tree_chart(result), "search_quality": _quality_chart(result)}


def _tree_chart(result: Mapping[str, Any]) -> Chart:
    levels = [level["ablations"][:_MAX_SHOWN] for level in result["levels"]]
    places = _places(result["levels"], levels)
    full = result["calibration"]["full"]["score"]
    beam = {tuple(removed) for level in result["levels"] for removed in level["beam"]}
    names = {removed: ablation_label(removed, result["units"]) or "nothing removed" for removed in places}
    nodes = [TreeNode(names[()], *places[()], 0.0, True)]
    for ablation in (ablation for shown in levels for ablation in shown):
        removed, drop = tuple(ablation["removed"]), full - ablation["score"]
        parents = [names[tuple(parent)] for parent in ablation["parents"] if tuple(parent) in names]
        told = drop if ablation["dropped_on"] is None else None
        nodes.append(TreeNode(names[removed], *places[removed], told, removed in beam, parents))
    title, _, remarks = _tree_title(result, levels).rpartition("\n")
    of = "accuracy" if result["rank_by"] == "accuracy" else "reference probability"
    words = {
        "title": title,
        "subtitle": remarks.replace(_BOLD, ""),
        "x": f"removed {_units(result)}",
        "drop": f"drop in {of} (calibration)",
    }
    return search_tree(nodes, words)


def _quality_chart(result: Mapping[str, Any]) -> Chart:
    report, total = result["report"], len(result["units"])
    baseline, full = report["baseline"], report["full"]
    marks = [
        Mark(
            name,
            total - len(entry["removed"]),
            entry["quality"],
            quality_limits(full["quality"], entry["drop_simultaneous_ci"], result.get("max_score")),
            bool(mark(entry["quality"], entry["num_distinct_answers"], baseline)),
        )
        for name in FINDERS
        for entry in result["ablations"]
        if name in entry["found_by"]
    ]
    constant = baseline and Mark(constant_label(baseline), 0, baseline["quality"], baseline["quality_ci"], True)
    words = {
        "title": withheld_title(_report_title(result), report),
        "subtitle": f"bars: {result['confidence']:.0%} {SIMULTANEOUS} of the drop",
        "x": f"active {_units(result)} (of {total})",
        "y": f"quality ({metric_label(result['metric'])})",
    }
    everything = Mark(f"all {total} {_units(result)}", total, full["quality"], full["quality_ci"])
    return quality_vs_blocks(marks, everything, words, constant)


def _units(result: Mapping[str, Any]) -> str:
    return "blocks" if len(result["units"]) == result["num_blocks"] else "sublayers"


def _report_title(result: Mapping[str, Any]) -> str:
    title = f"{result['task']}, {result['report']['num_samples']} validation samples"
    # the legend beside the axes leaves no room for more words in one line
    return title + skipping(result).replace(", ", ",\n")


def _draw_edges(axes: Axes, ablations: Sequence[dict[str, Any]], places: _Places, beam: set[tuple[int, ...]]) -> None:
    """A pale line to each ablation from the highest of its parents; a dark one between members of the beams."""
    for ablation in ablations:
        child = tuple(ablation["removed"])
        parents = [tuple(parent) for parent in ablation["parents"] if tuple(parent) in places]
        for parent in sorted(parents, key=lambda parent: -places[parent][1])[:1]:
            axes.plot(*zip(places[parent], places[child]), color=_PALE, linewidth=0.6, zorder=1)
        for parent in parents:
            if child in beam and parent in beam:
                axes.plot(*zip(places[parent], places[child]), color=_DARK, linewidth=1.6, zorder=2)


def _draw_nodes(
    axes: Axes, ablations: Sequence[dict[str, Any]], places: _Places, beam: set[tuple[int, ...]], full: float
) -> PathCollection:
    early, kept = ([a for a in ablations if (a["dropped_on"] is None) == stayed] for stayed in (False, True))
    axes.scatter(*_columns(early, places), s=9, color=_GREY, zorder=3)
    drops = [full - ablation["score"] for ablation in kept]
    is_member = [tuple(ablation["removed"]) in beam for ablation in kept]
    colored = axes.scatter(
        *_columns(kept, places),
        c=drops,
        s=[90 if member else 26 for member in is_member],
        edgecolors=[_DARK if member else "none" for member in is_member],
        cmap=_colors(),
        vmin=min(drops),
        # a few ablations cost far more than all others, which should still be told apart
        vmax=max(sorted(drops)[int(0.9 * (len(drops) - 1))], min(drops) + 1e-9),
        zorder=4,
    )
    axes.scatter(*places[()], s=90, color="white", edgecolors=_DARK, zorder=4)
    return colored


def _colors() -> Colormap:
    """Viridis without its yellow, which is lost on white."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["viridis_r"](np.linspace(0.22, 1.0, 256)))


def _columns(ablations: Sequence[dict[str, Any]], places: _Places) -> tuple[list[float], list[float]]:
    points = [places[tuple(ablation["removed"])] for ablation in ablations]
    return [x for x, _ in points], [y for _, y in points]


def _tree_title(result: Mapping[str, Any], levels: Sequence[Sequence[Any]]) -> str:
    kind = "Exhaustive search" if result["exhaustive"] else f"Beam of {result['beam_width']}"
    if result.get("strategy") == "pairwise":
        kind = "Pairwise search"
    title = f"{kind}, {result['task']}, {result['calibration']['num_samples']} calibration samples{skipping(result)}"
    remarks = [f"labels: removed blocks{_BOLD}"]
    if result["racing"]:
        remarks.append("grey: dropped by racing")
    if any(len(shown) < len(level["ablations"]) for level, shown in zip(result["levels"], levels)):
        remarks.append(f"the best {_MAX_SHOWN} of each size")
    return withheld_title(f"{title}\n{'; '.join(remarks)}", result["report"])


def _places(levels: Sequence[dict[str, Any]], shown: Sequence[Sequence[dict[str, Any]]]) -> _Places:
    """Where each ablation is drawn: below one another by the place of the first of its parents, the best first."""
    places: _Places = {(): (0.0, 0.0)}
    beam: list[tuple[int, ...]] = [()]
    for column, (level, ablations) in enumerate(zip(levels, shown), 1):
        height = {removed: places[removed][1] for removed in beam}
        below = [-max((height.get(tuple(p), -1.0) for p in each["parents"]), default=-1.0) for each in ablations]
        # stable: of one parent the best stays first
        ordered = [ablations[index] for index in sorted(range(len(below)), key=below.__getitem__)]
        for index, ablation in enumerate(ordered):
            y = 1 - 2 * (index + 0.5) / len(ordered)
            places[tuple(ablation["removed"])] = (float(column), y)
        beam = [tuple(removed) for removed in level["beam"]]
    return places


def drop_figure(result: Mapping[str, Any]) -> Figure:
    """Drop on the report split against the number of removed blocks: the search and its baselines, with intervals.

    The intervals are simultaneous over all ablations that were reported. A hollow marker answers no better than the
    best constant answer, whose line is dotted.
    """
    report = result["report"]
    baseline = report["baseline"]
    figure, axes = new_figure(8, 5)
    plain_axes(axes)
    finders = [name for name in FINDERS if any(name in entry["found_by"] for entry in result["ablations"])]
    for index, name in enumerate(finders):
        entries = [entry for entry in result["ablations"] if name in entry["found_by"]]
        drops = [entry["drop"] for entry in entries]
        offset = 0.07 * (index - (len(finders) - 1) / 2)  # so that intervals at one number can be told apart
        places = [len(entry["removed"]) + offset for entry in entries]
        limits = [entry["drop_simultaneous_ci"] for entry in entries]
        marks = [bool(mark(entry["quality"], entry["num_distinct_answers"], baseline)) for entry in entries]
        line_with_bars(axes, places, drops, limits, marks, (COLORS[index], MARKERS[index]), name)
    draw_constant(axes, baseline, report["full"]["quality"])
    axes.axhline(0, color=GREY, linestyle="--", linewidth=1.5, label="nothing removed")
    axes.set_xticks([level["num_removed"] for level in result["levels"]])
    axes.set_xlabel(f"Removed {_units(result)} (of {len(result['units'])})")
    axes.set_ylabel(f"Drop in quality ({metric_label(result['metric'])})")
    axes.set_title(withheld_title(_report_title(result), report), loc="left", fontsize=11)
    legend(figure, axes, f"bars: {result['confidence']:.0%} {SIMULTANEOUS}")
    return figure
