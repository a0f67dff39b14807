"""How firmly a decision stands, in words, in a strip of inclusion probabilities, and what it costs elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lit_depth.results.report import Section, Table
from lit_depth.results.style import new_figure
from lit_depth.results.table import Cell, format_interval, format_p_value
from lit_depth.results.unit_names import ranges, unit_name, unit_places
from lit_depth.results.verdicts import WITHHELD
from lit_depth.studies.shared.importance_views import matrix_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# probability that two fresh samples agree, from which a decision counts as settled; that of `decision_stability`
SETTLED = 0.9
# names of the figures
DECISIONS, REGRET = "decisions", "transfer_regret"
HEADING = "Would a fresh sample choose the same?"
EXPLAIN = (
    "'again': probability that a fresh sample of the same size skips exactly the same; 'two agree': that two fresh "
    f"samples do; 'samples': how many bring that to {SETTLED:.0%}. "
    "'corrected' is the drop of {best}, which looked best partly by luck, with an interval that allows for this."
)
EXPLAIN_REPORTED = " 'elsewhere' is its drop on the {split} split, which the choice did not see."
BEST_SINGLE = "the best single choice (the least important block of all measured)"
CHOSEN_MASK = "the chosen mask"
HEADERS = ("decision", "skips", "again", "two agree", "verdict", "samples", "drop", "corrected", "interval")
REPORTED_HEADERS = ("elsewhere", "interval")
EXPLAIN_REGRET = (
    "Quality lost on the task in 'paid on' by the choice of the other, against its own choice of as many (made on the "
    "other half of the {noun}s, so that it does not judge itself); intervals hold together. {cost}"
)
REGRET_HEADERS = ("chosen on", "paid on", "same", "regret", "interval", "p (Holm)")
SUM_OF_SINGLES = "Of blocks skipped together it is the sum of their single drops."
MEAN_OF_SIZES = "It is the mean over all sizes with a choice; 'same': of these, where both choose the same mask."
# of more units the figure's cells have no room for numbers
_MOST_NUMBERS = 40


def decision_units(blocks: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Names of measured blocks, or halves, by their index in masks.

    >>> decision_units([{"block": 1, "sublayer": "mlp"}]), decision_units([{"block": 1}])
    ({'3': '1.mlp'}, {'1': '1'})
    """
    return {str(place): str(unit_name(entry, ".")) for entry, place in zip(blocks, unit_places(blocks))}


def verdict(entry: Mapping[str, Any]) -> str:
    """A decision in a word or two, by the probability that two fresh samples agree.

    >>> [verdict({"agreement": each}) for each in (0.95, 0.7, 0.2)]
    ['settled', 'open', 'COIN TOSS']
    """
    agreement = entry["agreement"]
    return "settled" if agreement >= SETTLED else "open" if agreement > 0.5 else "COIN TOSS"


def percent(probability: float) -> str:
    """A simulated probability: nothing that was simulated is certain.

    >>> percent(0.0), percent(0.534), percent(1.0)
    ('<1%', '53%', '>99%')
    """
    return "<1%" if probability < 0.01 else ">99%" if probability > 0.99 else f"{probability:.0%}"


def decision_section(
    decisions: Sequence[tuple[str, Mapping[str, Any]]],
    units: Mapping[str, str],
    best: str,
    figures: Sequence[str] = (),
    heading: str = HEADING,
) -> list[Section]:
    """One row per decision, by its name; ``units`` are the names of units by index, ``best`` what the drop is of."""
    if not decisions:
        return []
    table = _decision_table(decisions, units)
    return [Section(heading, EXPLAIN.format(best=best), table, [name for name in figures if name == DECISIONS])]


def _decision_table(decisions: Sequence[tuple[str, Mapping[str, Any]]], units: Mapping[str, str]) -> Table:
    rows: list[list[Cell]] = []
    is_reported = any("reported_drop" in entry["best"] for _, entry in decisions)
    for name, entry in decisions:
        found = entry["best"]
        needed = "> 64 x" if entry["samples_needed"] is None else f"about {rounded(entry['samples_needed'])}"
        numbers = [f"{found['drop']:+.3f}", f"{found['corrected_drop']:+.3f}"]
        limits = format_interval(found["corrected_drop_ci"])
        firmness = [percent(entry["repeated"]), percent(entry["agreement"]), verdict(entry), needed]
        row: list[Cell] = [name, skipped(entry["skipped"], units), *firmness, *numbers, limits]
        if is_reported and "reported_drop" not in found:
            row += [None, None]
        elif is_reported:
            row += [f"{found['reported_drop']:+.3f}", format_interval(found["reported_drop_ci"])]
        rows.append(row)
    return Table([*HEADERS, *(REPORTED_HEADERS if is_reported else ())], rows)


def mask_decisions(result: Mapping[str, Any], refused: str | None) -> list[tuple[str, Mapping[str, Any]]]:
    """The decisions of a result that chooses among masks, by name; none where nothing may be told, as in old files."""
    return [] if refused else [(each["name"], each) for each in result.get("decisions", ())]


def mask_decision_section(
    result: Mapping[str, Any],
    refused: str | None,
    units: Mapping[str, str],
    note: str,
    figures: Sequence[str] = (),
    split: str = "validation",
) -> list[Section]:
    """The decisions of a result, and why there are no others; nothing of files of earlier versions.

    Args:
        result: Holds ``decisions`` and ``undecided``, see `lit_depth.studies.shared.decisions.decide_masks`.
        refused: Why there is no verdict, if there is none.
        units: Names of units by index.
        note: Who chooses among what.
        figures: Names of the report's figures.
        split: Which the choice did not see, if there is one.
    """
    if "decisions" not in result:
        return []
    if refused:
        return [Section(HEADING, f"{WITHHELD.upper()}.")]
    decisions, lines = mask_decisions(result, refused), [note]
    if decisions:
        is_reported = any("reported_drop" in each["best"] for _, each in decisions)
        elsewhere = EXPLAIN_REPORTED.format(split=split) if is_reported else ""
        lines.append(EXPLAIN.format(best=CHOSEN_MASK) + elsewhere)
    lines.append(not_told(result["undecided"]))
    text = "\n\n".join(filter(None, lines))
    table = _decision_table(decisions, units) if decisions else None
    return [Section(HEADING, text, table, [name for name in figures if name == DECISIONS])]


def not_told(undecided: Mapping[str, str]) -> str:
    """What is not decided, by its reason.

    >>> not_told({"1 removed": "one mask", "15 blocks": "one mask"}), not_told({})
    ('Nothing to choose: 1 removed, 15 blocks (one mask).', '')
    """
    names: dict[str, list[str]] = {}
    for name, reason in undecided.items():
        names.setdefault(reason, []).append(name)
    return " ".join(f"Nothing to choose: {', '.join(each)} ({reason})." for reason, each in names.items())


def skipped(chosen: Sequence[int], units: Mapping[str, str]) -> str:
    """Units by name; whole blocks as ranges.

    >>> skipped([3, 4, 5], {"3": "3", "4": "4", "5": "5"}), skipped([6, 7], {"6": "3.attn", "7": "3.mlp"})
    ('3-5', '3.attn 3.mlp')
    >>> skipped([], {})
    'nothing'
    """
    if not chosen:
        return "nothing"
    names = [units[str(unit)] for unit in chosen]
    return ranges(list(map(int, names))) if all(name.isdigit() for name in names) else " ".join(names)


def rounded(number: int) -> int:
    """Two digits: a foreseen size is no more exact.

    >>> rounded(4321), rounded(97)
    (4300, 97)
    """
    return round(number, 2 - len(str(number))) if number >= 100 else number


def inclusion_column(entry: Mapping[str, Any] | None, units: Sequence[str]) -> list[Cell]:
    """The probability of each unit being skipped by a fresh sample; nothing of results that do not tell it."""
    return [percent(entry["inclusion"][unit]) if entry and unit in entry["inclusion"] else None for unit in units]


def decision_figures(
    decisions: Sequence[tuple[str, Mapping[str, Any]]],
    units: Mapping[str, str],
    regrets: Sequence[Mapping[str, Any]],
    confidence: float,
) -> dict[str, Callable[[], Figure]]:
    """Names of the figures, and what draws each: those of which there is something to draw."""
    figures: dict[str, Callable[[], Figure]] = {}
    if decisions:
        figures[DECISIONS] = partial(inclusion_figure, decisions, units)
    if regrets:
        figures[REGRET] = partial(regret_figure, regrets, confidence)
    return figures


def inclusion_figure(decisions: Sequence[tuple[str, Mapping[str, Any]]], units: Mapping[str, str]) -> Figure:
    """A strip per decision: the probability that a fresh sample skips each unit; what is skipped now has a frame.

    A cell between 10% and 90% is hatched: such a unit is chosen by luck.
    """
    from matplotlib.patches import Rectangle

    names = list(units)
    values = [[entry["inclusion"].get(unit, float("nan")) for unit in names] for _, entry in decisions]
    figure, axes = new_figure(max(7, 0.45 * len(names) + 3), max(1.9, 0.42 * len(decisions) + 1.4))
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, (_, entry) in enumerate(decisions):
        for column, unit in enumerate(names):
            value = values[row][column]
            corner = (column - 0.5, row - 0.5)
            if 0.1 < value < 0.9:
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor="#bbbbbb", linewidth=0))
            if int(unit) in entry["skipped"]:
                inside = (column - 0.45, row - 0.43)
                axes.add_patch(Rectangle(inside, 0.9, 0.86, fill=False, edgecolor="#D55E00", linewidth=2))
            if value == value and len(names) <= _MOST_NUMBERS:
                color = "white" if value > 0.6 else "black"
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=color)
    labels = list(units.values())
    turned = {"rotation": 90} if max(map(len, labels)) > 2 else {}
    axes.set_xticks(range(len(names)), labels, fontsize=8, **turned)
    axes.set_yticks(range(len(decisions)), [f"{name}: {verdict(entry)}" for name, entry in decisions], fontsize=9)
    axes.set_title(
        "Chance in % that a fresh sample skips it; framed: skipped now; hatched: a matter of luck",
        loc="left",
        fontsize=10,
    )
    axes.set_xlabel("Block" if all(label.isdigit() for label in labels) else "Block half")
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    return figure


def regret_section(
    regrets: Sequence[Mapping[str, Any]],
    cost: str = SUM_OF_SINGLES,
    figures: Sequence[str] = (),
    noun: str = "image",
) -> list[Section]:
    """One row per ordered pair of tasks; nothing where there is one task. ``noun`` is what a cluster is called."""
    if not regrets:
        return []
    rows: list[list[Cell]] = [
        [
            *(each["chosen"], each["paid"], f"{each['num_shared']} of {_num_chosen(each)}"),
            f"{each['regret']:+.3f}",
            format_interval(each["regret_simultaneous_ci"]),
            format_p_value(each["p_holm"]),
        ]
        for each in regrets
    ]
    shown, text = [name for name in figures if name == REGRET], EXPLAIN_REGRET.format(cost=cost, noun=noun)
    return [Section("Chosen on one, paid on the other", text, Table(REGRET_HEADERS, rows), shown)]


def _num_chosen(regret: Mapping[str, Any]) -> int:
    """Blocks that were chosen, or choices among masks."""
    return regret["num_choices"] if "num_choices" in regret else regret["num_skipped"]


def regret_figure(regrets: Sequence[Mapping[str, Any]], confidence: float) -> Figure:
    """Matrix of regrets: a row per task of the choice, a column per task that pays; pale where 0 is not excluded."""
    names = list(dict.fromkeys(each["chosen"] for each in regrets))
    found = {(each["chosen"], each["paid"]): each for each in regrets}
    pairs = [[found.get((row, column)) for column in names] for row in names]
    values = [[each["regret"] if each else None for each in row] for row in pairs]
    sure = [[each is not None and each["p_holm"] < 1 - confidence for each in row] for row in pairs]
    limit = max([abs(each["regret"]) for each in regrets] + [0.01])
    title = "Quality lost on a column's task\nby a row's choice (pale: 0 is within)"
    return matrix_figure(values, names, names, title, limit, "Paid on", sure)
