"""When a result says that something differs, and when it says nothing: one rule for text, table, figure and page.

Two things *differ* exactly where the corrected p-value of their family lies below ``1 - confidence``. Intervals that
are drawn or printed beside it are the simultaneous ones, which exclude 0 in the same cases. Where the full model does
not beat the best constant answer, no verdict is given at all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Part = tuple[str, str, Mapping[str, Any]]
WITHHELD = "withheld"
AT_CONSTANT, IS_CONSTANT = "*", "**"
LEGEND = f"{AT_CONSTANT} at or below the best constant answer; {IS_CONSTANT} one and the same answer to every question."
SIMULTANEOUS = "simultaneous intervals (Holm)"


def differs(p_holm: float | None, confidence: float) -> bool:
    """Whether a family's corrected p-value makes a difference; None (nothing to test) does not.

    >>> differs(0.04, 0.95), differs(0.06, 0.95), differs(None, 0.95)
    (True, False, False)
    """
    return p_holm is not None and p_holm < 1 - confidence


def refusal(entry: Mapping[str, Any], where: str = "") -> str | None:
    """Why no verdict is given, in one sentence; None where there are verdicts.

    Results of earlier versions have no baseline: nothing is known against them. ``where`` is what the samples are of.

    >>> baseline = {"answer": "yes", "quality": 0.458, "difference": -0.291, "difference_ci": [-0.4, -0.18]}
    >>> refusal({"full": {"quality": 0.167}, "baseline": {**baseline, "beaten": False}}, "chart_qa")[:76]
    'No verdict on chart_qa: the full model (0.167) was not shown to beat the con'
    """
    baseline = entry.get("baseline")
    if baseline is None or baseline["beaten"]:
        return None
    low, high = baseline["difference_ci"]
    on = f" on {where}" if where else ""
    return (
        f"No verdict{on}: the full model ({entry['full']['quality']:.3f}) was not shown to beat "
        f"{_constant(baseline)} ({baseline['quality']:.3f}): difference {baseline['difference']:+.3f} "
        f"[{low:+.3f}, {high:+.3f}]. What skipping blocks does to it says nothing about the task."
    )


def describe_constant(entry: Mapping[str, Any]) -> str:
    """The best constant answer and the number of distinct answers, to stand behind the full model's quality.

    The text begins with a space; it is empty where there is no baseline.
    """
    baseline = entry.get("baseline")
    if baseline is None:
        return ""
    (low, high), (least, most) = baseline["quality_ci"], baseline["difference_ci"]
    distinct = entry["full"].get("num_distinct_answers")
    different = "" if distinct is None else f" ({count_answers(distinct)})"
    found = f"the best of {baseline['num_candidates']} on the {baseline['split']} split"
    if baseline.get("reason"):
        found += f", which favours it ({baseline['reason']})"
    return (
        f" Full model{different} less {_constant(baseline)}: {baseline['difference']:+.3f} "
        f"[{least:+.3f}, {most:+.3f}]; the constant answer scores {baseline['quality']:.3f} "
        f"[{low:.3f}, {high:.3f}], {found}."
    )


def verdict_scalars(measured: Sequence[Part], also: Sequence[Part] = ()) -> dict[str, Any]:
    """What loggers keep first: why there are no verdicts, and of each part its best constant answer.

    A part has a name in a sentence, an end of its keys (``/<task>``), and itself. Those of ``also`` withhold nothing.

    >>> verdict_scalars([("a", "/a", {"full": {"num_distinct_answers": 3}, "baseline": None})])
    {'withheld': ''}
    """
    found: dict[str, Any] = {
        "withheld": " ".join(reason for name, _, entry in measured if (reason := refusal(entry, name)))
    }
    for _, end, entry in (*measured, *also):
        if (baseline := entry.get("baseline")) is not None:
            found |= {f"baseline/{key}{end}": baseline[key] for key in ("answer", "quality", "beaten")}
            found[f"full/num_distinct_answers{end}"] = entry["full"].get("num_distinct_answers")
    return found


def count_answers(number: int) -> str:
    """
    >>> count_answers(1), count_answers(7)
    ('1 distinct answer', '7 distinct answers')
    """
    return f"{number} distinct answer{'' if number == 1 else 's'}"


def constant_label(baseline: Mapping[str, Any]) -> str:
    """Name of the constant answer's line in a figure."""
    answer = baseline["answer"]
    return "best constant answers" if answer is None else f'constant answer "{_short(answer, 16)}"'


def mark(quality: float, num_distinct_answers: int | None, baseline: Mapping[str, Any] | None) -> str:
    """Sign of a mask that answers no better than a constant: see `LEGEND`.

    >>> [mark(0.5, distinct, {"quality": 0.4}) for distinct in (1, 2)], mark(0.4, 2, {"quality": 0.4})
    (['**', ''], '*')
    """
    if num_distinct_answers == 1:
        return IS_CONSTANT
    return AT_CONSTANT if baseline is not None and quality <= baseline["quality"] + 1e-12 else ""


def mark_strategy(strategy: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> str:
    """`mark` of a policy at one number of blocks: a constant if all of its masks are."""
    counts = [mask.get("num_distinct_answers") for mask in strategy["masks"]]
    return mark(strategy["quality"], 1 if set(counts) == {1} else None, baseline)


def _constant(baseline: Mapping[str, Any]) -> str:
    answer = baseline["answer"]
    return "the best constant answer of each task" if answer is None else f'the constant answer "{_short(answer, 60)}"'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
