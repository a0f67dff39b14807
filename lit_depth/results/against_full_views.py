"""How masks agree with the full model, as table, figure and one sentence: accuracy beside the answers behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_depth.results.report import Section, Table
from lit_depth.results.style import COLORS, GREY, MARKERS, bar_lengths, legend, new_figure, plain_axes
from lit_depth.results.table import Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY = 0.05  # share of scores that change, from which a mask of equal quality is pointed out
AGREEMENT_FIGURE = "flips_vs_drop"
EXPLAIN = (
    "'same answer' is the share of answers whose generated tokens are all the full model's; 'right to wrong' and "
    "'wrong to right' the shares of scores below and above the full model's; 'first difference' the median index of "
    "the first token that differs, over the answers that differ; 'greedy agreement given the reference prefix' the "
    "share of reference tokens at which the most likely token, with the reference answer before it, is the full "
    "model's. {confidence:.0%} intervals by {cluster}, each standing alone."
)
EXPLAIN_TEXTS = " Answers of earlier records are compared as texts."
EXPLAIN_ACCEPTANCE = (
    " 'acceptance' is that share along the full model's own answer, up to 16 tokens: what it would accept of a draft "
    "by this mask. 'tokens per check' is how many tokens each of its forwards would then yield, 4 being drafted."
)
_SHARES = {
    "same_answer": "same answer",
    "right_to_wrong": "right to wrong",
    "wrong_to_right": "wrong to right",
    "first_difference": "first difference",
    "reference_agreement": "greedy agreement given the reference prefix",
    "acceptance": "acceptance",
    "tokens_per_check": "tokens per check",
}
# of the tables that loggers keep
AGREEMENT_COLUMNS = tuple(_SHARES)
_COUNTED = ("first_difference", "tokens_per_check")  # all others are shares


class AgainstFull(NamedTuple):
    """One mask, or the mean over several, beside the full model.

    Attributes:
        name: What it is called.
        group: Those of one group share a colour in the figure.
        drop: Its drop in quality.
        drop_ci: The interval of that drop.
        is_different: Whether the drop was shown.
        agreement: Its ``agreement`` entry; None = it is not known.
    """

    name: str
    group: str
    drop: float
    drop_ci: Sequence[float]
    is_different: bool
    agreement: Mapping[str, Any] | None


def agreement_sections(
    masks: Sequence[AgainstFull], confidence: float, cluster: str, where: str = "", figures: Sequence[str] = ()
) -> list[Section]:
    """The sentence about masks of equal quality, for terminal and page, and the table with its figure, for the page.

    Nothing where nothing is known. ``where`` names one of several tasks.
    """
    known = [mask for mask in masks if mask.agreement]
    if not known:
        return []
    names = [name for name in _SHARES if any(name in (mask.agreement or {}) for mask in known)]
    rows: list[Sequence[Cell]] = [
        [mask.name, f"{mask.drop:+.3f}", *(_cell(mask.agreement or {}, name) for name in names)] for mask in known
    ]
    text = EXPLAIN.format(confidence=confidence, cluster=cluster)
    if "first_difference" not in names:
        text += EXPLAIN_TEXTS
    text += EXPLAIN_ACCEPTANCE if "acceptance" in names else ""
    end = f", {where}" if where else ""
    sentence = describe_flips(known, where)
    return [
        *([Section(f"Scores that change at equal quality{end}", sentence)] if sentence else []),
        Section(
            f"Agreement with the full model{end}",
            text,
            Table(["mask", "drop", *(_SHARES[name] for name in names)], rows),
            figures,
            printed=False,
        ),
    ]


def describe_flips(masks: Sequence[AgainstFull], where: str = "") -> str:
    """Of the masks whose drop was not shown, the one that changes most scores; empty where none is known.

    It is called one of equal quality and other answers if more than 5% of the scores change even at the interval's
    lower end, and at least half of them cancel out in the mean.

    >>> agreement = {"flips": 0.25, "flips_ci": [0.2, 0.31], "right_to_wrong": 0.13, "wrong_to_right": 0.12}
    >>> agreement |= {"same_answer": 0.7}
    >>> print(describe_flips([AgainstFull("block 3", "", 0.01, (-0.02, 0.04), False, agreement)]))
    EQUAL QUALITY, OTHER ANSWERS: block 3 (drop +0.010, not shown) changes 25.0% [20.0%, 31.0%] of the scores (13.0% \
right to wrong, 12.0% wrong to right) and 30.0% of the answers.
    """
    tied = [mask for mask in masks if not mask.is_different and "flips" in (mask.agreement or {})]
    if not tied:
        return ""
    hidden = [mask for mask in tied if _cancels_out(mask.agreement or {})]
    most = max(hidden or tied, key=lambda mask: (mask.agreement or {})["flips"])
    found = most.agreement or {}
    on = f" on {where}" if where else ""
    if not found["flips"]:
        return f"Of the masks without a drop that was shown{on}, none changes a score."
    low, high = found["flips_ci"]
    numbers = (
        f"{found['flips']:.1%} [{low:.1%}, {high:.1%}] of the scores ({found['right_to_wrong']:.1%} right to wrong, "
        f"{found['wrong_to_right']:.1%} wrong to right)"
    )
    if "same_answer" in found:
        numbers += f" and {1 - found['same_answer']:.1%} of the answers"
    if not hidden:
        return f"Of the masks without a drop that was shown{on}, {most.name} changes most: {numbers}."
    others = f" There are {len(hidden)} such masks in all." if len(hidden) > 1 else ""
    return (
        f"EQUAL QUALITY, OTHER ANSWERS{on}: {most.name} (drop {most.drop:+.3f}, not shown) changes {numbers}.{others}"
    )


def _cancels_out(found: Mapping[str, Any]) -> bool:
    """Whether many scores change, and at least half of these changes are not seen in the mean."""
    seen = abs(found["right_to_wrong"] - found["wrong_to_right"])
    return bool(found["flips_ci"][0] > MANY and seen <= found["flips"] / 2)


def flips_figure(masks: Sequence[AgainstFull], title: str, confidence: float, max_score: float | None = 1.0) -> Figure:
    """Share of changed scores against the drop in quality, with intervals.

    A drop of scores from 0 to ``max_score`` (None = 1) needs a share of changes of the drop over it at least: the
    dashed line. Of scores 0 and 1, what stands above it changes answers in both directions; above 0 such a mask keeps
    the quality and answers otherwise.
    """
    figure, axes = new_figure(8, 5)
    known = [mask for mask in masks if mask.agreement and "flips" in mask.agreement]
    groups = list(dict.fromkeys(mask.group for mask in known))
    for place, group in enumerate(groups):
        points = [(mask, mask.agreement) for mask in known if mask.group == group]
        x, y = [mask.drop for mask, _ in points], [found["flips"] for _, found in points if found]
        across = bar_lengths(x, [mask.drop_ci for mask, _ in points])
        up = bar_lengths(y, [found["flips_ci"] for _, found in points if found])
        axes.errorbar(
            x, y, yerr=up, xerr=across, color=COLORS[place % len(COLORS)], marker=MARKERS[place % len(MARKERS)],
            linestyle="", elinewidth=0.7, alpha=0.8, label=group or None,
        )  # fmt: skip
    low, high = axes.get_xlim()
    least = [abs(end) / (max_score or 1.0) for end in (low, 0, high)]
    axes.plot([low, 0, high], least, color=GREY, linestyle="--", linewidth=1)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    axes.axhline(MANY, color=GREY, linewidth=0.8, linestyle=":")
    plain_axes(axes)
    axes.set_xlabel("Drop in quality")
    axes.set_ylabel("Share of scores that change")
    axes.set_title(title, loc="left", fontsize=11)
    legend(figure, axes, f"bars: {confidence:.0%} intervals\ndashed: no fewer can change\ndotted: {MANY:.0%}")
    return figure


def flips_figures(
    masks: Sequence[AgainstFull],
    title: str,
    confidence: float,
    name: str = AGREEMENT_FIGURE,
    max_score: float | None = 1.0,
) -> dict[str, Callable[[], Figure]]:
    """`flips_figure` by its name; nothing where nothing is known."""
    if not any(mask.agreement and "flips" in mask.agreement for mask in masks):
        return {}
    return {name: partial(flips_figure, masks, title, confidence, max_score)}


def logged_agreement(found: Mapping[str, Any] | None) -> list[float | None]:
    """Cells of `AGREEMENT_COLUMNS`, without rounding."""
    return [(found or {}).get(name) for name in AGREEMENT_COLUMNS]


def _cell(found: Mapping[str, Any], name: str) -> str | None:
    value = found.get(name)
    if value is None:
        return None
    low, high = found[f"{name}_ci"]
    if name in _COUNTED:
        return f"{value:.3g} [{low:.3g}, {high:.3g}]"
    return f"{value:.1%} [{low:.1%}, {high:.1%}]"
