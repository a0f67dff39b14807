"""What is told of runs of one model whose masks other tokens skip: which is better where both cost the same."""

from __future__ import annotations

from collections.abc import Sequence

from lit_depth.results.model_names import without_skipping
from lit_depth.results.report import Section, Table
from lit_depth.results.table import Cell, format_interval, format_p_value
from lit_depth.results.verdicts import SIMULTANEOUS, differs
from lit_depth.studies.overview.equal_cost import ANY_POLICY, COSTS, CostPair

HEADERS = ("task", "at equal", "from", "what", "a", "b", "verdict", "a - b", "interval", "p (Holm)", "samples")
HEADING = "Quality at equal cost"


def equal_cost_sentences(pairs: Sequence[CostPair], confidence: float) -> list[str]:
    """One sentence for each pair of runs, task and kind of cost."""
    return [_sentence(pair, confidence) for pair in pairs if pair.what == ANY_POLICY]


def _sentence(pair: CostPair, confidence: float) -> str:
    first, second = _short(pair.a), _short(pair.b)
    place = f"On {pair.task} at equal {COSTS[pair.cost]}"
    if pair.found is None:
        why = "one of them has no mask that costs less than all blocks"
        return f"{place} nothing is compared where {first} and where {second}: {why}."
    place += f" (mean over {pair.low:.2f} to 1 of that of all blocks)"
    estimate, together = pair.found.interval.estimate, pair.found.simultaneous
    limits, p_value = [together.low, together.high], format_p_value(pair.found.p_holm)
    if not differs(pair.found.p_holm, confidence):
        numbers = f"the first less the second {estimate:+.3f} {format_interval(limits)}, p {p_value}"
        return f"{place} the two are not separable, where {first} and where {second}: {numbers}."
    if estimate < 0:
        first, second, estimate, limits = second, first, -estimate, [-limits[1], -limits[0]]
    higher = f"{estimate:+.3f} {format_interval(limits)}, p {p_value}"
    return f"{place} quality is higher where {first} than where {second}: {higher}."


def _short(label: str) -> str:
    """Which tokens skip, and when, without the name of the model that both runs have."""
    return label.removeprefix(f"{without_skipping(label)}, ")


def equal_cost_section(pairs: Sequence[CostPair], confidence: float, figures: Sequence[str]) -> Section:
    """The tests in a table, how they are made, and the figures."""
    text = (
        "Costs are relative to all blocks of the same run: counted operations, and medians of times. At each cost a "
        "run has its best mask of at most that cost, chosen by one half of the images and read by the other, and the "
        "other way round. A difference is the mean over all costs from the least that both runs have (from) to that "
        f"of all blocks. Intervals are {confidence:.0%} {SIMULTANEOUS} over all rows, clustered by image; those of "
        "times take the medians as they are."
    )
    return Section(HEADING, text, Table(HEADERS, [_row(pair, confidence) for pair in pairs]), figures)


def _row(pair: CostPair, confidence: float) -> list[Cell]:
    place: list[Cell] = [pair.task, COSTS[pair.cost], f"{pair.low:.3f}", pair.what, pair.a, pair.b]
    if pair.found is None:
        return [*place, "no cheaper mask", None, None, None, pair.num_samples]
    interval, together = pair.found.interval, pair.found.simultaneous
    better = "a is better" if interval.estimate > 0 else "b is better"
    return [
        *place,
        better if differs(pair.found.p_holm, confidence) else "not separable",
        f"{interval.estimate:+.3f}",
        format_interval([together.low, together.high]),
        format_p_value(pair.found.p_holm),
        pair.num_samples,
    ]
