"""What ``lit-depth search --heal patch`` tells of masks after patching, beside what it tells of them as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_depth.results.measures import metric_label
from lit_depth.results.report import Section, Table
from lit_depth.results.style import COLORS, GREY, MARKERS, bar_lengths, legend, new_figure, plain_axes, withheld_title
from lit_depth.results.table import Cell, format_interval, format_p_value
from lit_depth.results.verdicts import SIMULTANEOUS, WITHHELD, refusal
from lit_depth.studies.search.figures import ablation_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE = "quality_after_patching"
SIZE_HEADERS = (
    "removed",
    "patched",
    "rank correlation",
    "interval",
    "best before",
    "best after",
    "gain",
    "interval",
    "p (Holm)",
)
MASK_HEADERS = (
    "removed",
    "which",
    "quality",
    "interval",
    "patched",
    "interval",
    "regained",
    "interval",
    "p (Holm)",
    "drop left",
    "interval",
)
_INTERVALS = ("quality_ci", "healed_quality_ci", "regained_simultaneous_ci", "healed_drop_simultaneous_ci")
COLUMNS = (
    *("removed", "num_removed", "quality", "healed_quality", "regained", "regained_p_holm"),
    *("healed_drop", "healed_drop_p_holm"),
    *(f"{name}_{end}" for name in _INTERVALS for end in ("low", "high")),
)


def describe_change(result: Mapping[str, Any]) -> str:
    """What patching does to the order of the masks, in a few sentences."""
    healing = result["healing"]
    sentences = [_describe_mean(healing)]
    if refusal(result["report"]) is None:
        sentences.append(_describe_best(healing["levels"][-1], result))
    return " ".join(sentences)


def _describe_mean(healing: Mapping[str, Any]) -> str:
    mean = healing["mean"]
    if mean is None:
        reasons = dict.fromkeys(level["reason"] for level in healing["levels"])
        return f"After patching: no rank correlation with the order before ({'; '.join(reasons)})."
    sizes = ", ".join(map(str, mean["sizes"]))
    over = f"the mean over {sizes} removed blocks" if len(mean["sizes"]) > 1 else f"{sizes} removed"
    low, high = mean["spearman_ci"]
    limits = format_interval([low, high])
    still_open = ": these samples leave open whether the orders agree" if low <= 0 <= high else ""
    return (
        f"After patching, the order of the masks of one size correlates {mean['spearman']:+.2f} (Spearman, {over}) "
        f"with the order before; what samples without noise would show lies in {limits}{still_open}."
    )


def _describe_best(level: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    before, after = (f"'{ablation_label(level[key], result['units'])}'" for key in ("best_before", "best_after"))
    size, tied = level["num_removed"], level["tied_after"]
    blocks = f"{size} block{'s' if size > 1 else ''}"
    ties = f" ({len(tied) - 1} of the {level['num_masks']} are tied with it)" if len(tied) > 1 else ""
    if before == after:
        return f"The best mask of {blocks} stays {after}{ties}."
    first = "comes first among the patched masks" if ties else "is the best patched mask"
    gain, limits, p_value = _difference(level, "gain")
    return (
        f"Of {blocks}, {after} {first}{ties} instead of {before}; patched quality on the validation split {gain} "
        f"{limits}, p {p_value}."
    )


def sections(result: Mapping[str, Any]) -> list[Section]:
    """The sizes and the masks, before and after patching."""
    rows = [_size_row(level, result) for level in result["healing"]["levels"]]
    masks = [_mask_row(mask, result) for mask in result["healing"]["masks"]]
    return [
        Section("Order after patching", _how(result), Table(SIZE_HEADERS, rows), figures=[FIGURE]),
        Section("Patched masks", table=Table(MASK_HEADERS, masks)),
    ]


def _how(result: Mapping[str, Any]) -> str:
    healing = result["healing"]
    fit, choice, steps = healing["fit"], healing["choice"], result["heal_steps"]
    how = f"at most {steps} Gauss-Newton steps to the answers" if steps else "one closed form for each span of blocks"
    reasons = [f"{level['num_removed']} removed: {level['reason']}" for level in healing["levels"] if level["reason"]]
    missing = f" No rank correlation: {'; '.join(reasons)}." if reasons else ""
    return (
        f"The best masks of each size, patched ({how}) on {fit['num_questions']} {fit['split']} questions, ranked by "
        f"{result['rank_by']} on {choice['num_samples']} others of {choice['num_images']} images. Rank correlation: of "
        f"the two orders on the {healing['report']['split']} split, with the interval for the one that samples without "
        "noise would show. Gain: patched quality of the best after, less that of the best before; "
        f"{result['confidence']:.0%} {SIMULTANEOUS} over the sizes, and over all masks below. "
        f"Block 0 was kept: a patch takes a block before the skipped ones.{missing}"
    )


def _size_row(level: Mapping[str, Any], result: Mapping[str, Any]) -> list[Cell]:
    estimate, limits = level["spearman"], level["spearman_ci"]
    correlation = [None if estimate is None else f"{estimate:+.2f}", limits and format_interval(limits)]
    counts = [level["num_removed"], level["num_masks"]]
    if refusal(result["report"]) is not None:
        return [*counts, *correlation, *[WITHHELD] * 5]
    best = [ablation_label(level[key], result["units"]) for key in ("best_before", "best_after")]
    if len(level["tied_after"]) > 1:
        best[1] += f" ({len(level['tied_after']) - 1} tied)"
    return [*counts, *correlation, *best, *_difference(level, "gain")]


def _difference(entry: Mapping[str, Any], key: str) -> list[Cell]:
    if entry[key] is None:
        return [None] * 3
    limits, p_value = entry[f"{key}_simultaneous_ci"], entry[f"{key}_p_holm"]
    return [f"{entry[key]:+.3f}", format_interval(limits), format_p_value(p_value)]


def _mask_row(mask: Mapping[str, Any], result: Mapping[str, Any]) -> list[Cell]:
    qualities: list[Cell] = []
    for key in ("quality", "healed_quality"):
        qualities += [mask[key], format_interval(mask[f"{key}_ci"], sign="")]
    which, left = ablation_label(mask["removed"], result["units"]), _difference(mask, "healed_drop")[:2]
    return [len(mask["removed"]), which, *qualities, *_difference(mask, "regained"), *left]


def table(result: Mapping[str, Any]) -> Table:
    """All patched masks, for loggers."""
    rows: list[list[Cell]] = []
    for mask in result["healing"]["masks"]:
        named = " ".join(result["units"][unit] for unit in mask["removed"])
        ends = [end for name in _INTERVALS for end in mask[name]]
        rows.append([named, len(mask["removed"]), *(mask[key] for key in COLUMNS[2:8]), *ends])
    return Table(COLUMNS, rows)


def scalars(result: Mapping[str, Any]) -> dict[str, Any]:
    """What loggers keep: the correlations, and of each size the mask that is best after patching."""
    healing, found = result["healing"], {}
    qualities = {tuple(mask["removed"]): mask["healed_quality"] for mask in healing["masks"]}
    if healing["mean"] is not None:
        low, high = healing["mean"]["spearman_ci"]
        found = {"spearman": healing["mean"]["spearman"], "spearman_low": low, "spearman_high": high}
    for level in healing["levels"]:
        size, best = level["num_removed"], level["best_after"]
        found |= {
            f"spearman_{size}": level["spearman"],
            f"removed_{size}": " ".join(result["units"][unit] for unit in best),
            f"quality_{size}": qualities[tuple(best)],
            f"gain_{size}": level["gain"],
        }
    return {f"healing/{key}": value for key, value in found.items() if value is not None}


def healing_figure(result: Mapping[str, Any]) -> Figure:
    """Quality of each mask after patching against that before, on the validation split, with intervals.

    The best of a size after patching, which other questions chose, has a ring. Above the dashed line a mask has gained.
    """
    healing, report = result["healing"], result["report"]
    figure, axes = new_figure(7.5, 5.5)
    plain_axes(axes)
    for index, level in enumerate(healing["levels"]):
        masks = [mask for mask in healing["masks"] if len(mask["removed"]) == level["num_removed"]]
        look = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
        x, y = ([mask[key] for mask in masks] for key in ("quality", "healed_quality"))
        bars = [bar_lengths(v, [m[f"{k}_ci"] for m in masks]) for v, k in ((x, "quality"), (y, "healed_quality"))]
        lines = {"linestyle": "none", "elinewidth": 0.8, "markersize": 6, "ecolor": (look["color"], 0.4)}
        axes.errorbar(x, y, xerr=bars[0], yerr=bars[1], label=f"{level['num_removed']} removed", **look, **lines)
        best = [m for m in masks if tuple(m["removed"]) == tuple(level["best_after"])]
        if refusal(report) is None:
            axes.plot(
                *([m[key] for m in best] for key in ("quality", "healed_quality")),
                "o", markersize=12, markerfacecolor="none", markeredgecolor=look["color"], gid="best",
            )  # fmt: skip
    _draw_equal(axes, healing["masks"])
    axes.set_xlabel(f"Quality before patching ({metric_label(result['metric'])})")
    axes.set_ylabel("Quality after patching")
    title = f"{result['task']}, {healing['report']['num_samples']} validation samples"
    axes.set_title(withheld_title(title, report), loc="left", fontsize=11)
    ring = "" if refusal(report) else "\nring: best of its size after patching,\nby other questions"
    legend(figure, axes, f"bars: {result['confidence']:.0%} intervals{ring}")
    return figure


def _draw_equal(axes: Any, masks: Sequence[Mapping[str, Any]]) -> None:
    ends = [end for mask in masks for key in ("quality_ci", "healed_quality_ci") for end in mask[key]]
    full = [min(ends), max(ends)]
    axes.plot(full, full, color=GREY, linestyle="--", linewidth=1.2, zorder=0, label="as before")
