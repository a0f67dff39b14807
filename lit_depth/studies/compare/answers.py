"""The four questions that a comparison is run for, answered with numbers; "not shown" and "withheld" are answers."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from lit_depth.functional.statistics import holm
from lit_depth.results.unit_names import list_counts
from lit_depth.results.verdicts import WITHHELD, differs

Entries = Sequence[dict[str, Any]]
# what an answer says besides its numbers
_CLAIMS = ("better_at", "worse_at", "num_tied", "significant_at", "counterexamples_at")


def answer_questions(comparisons: Entries, strategies: Entries, confidence: float = 0.95) -> dict[str, Any]:
    """The four answers; None stands for a question that was not asked, because its policies were not run.

    The first two rest on the tests of one pair of policies, as they stand in ``comparisons``: at each number of blocks
    (corrected over these numbers) and of the mean over them (corrected over all pairs). Each of these that differs
    points in one direction. The answer is

    - "depends on depth", if some point one way and some the other, or if only single numbers of blocks do and not the
      mean;
    - "yes" or "no", if the mean differs and nothing points the other way;
    - "not shown", if nothing differs.

    The other two ask whether *any* two policies differ at *any* number of blocks, corrected over all these tests
    together.

    Args:
        comparisons: See `lit_depth.studies.compare.analysis.compare_policies`.
        strategies: All policies at all numbers of active blocks.
        confidence: One less the level of the tests.
    """
    names = {strategy["policy"] for strategy in strategies}

    def pair(winner: str, loser: str, versus: str) -> dict[str, Any] | None:
        mine = [c for c in comparisons if {c["a"], c["b"]} == {winner, loser}]
        return _beats(mine, winner, versus, confidence) if {winner, loser} <= names else None

    frame = pd.DataFrame(strategies)[["policy", "num_active_blocks", "quality"]]
    asked = bool((frame["num_active_blocks"].value_counts() > 1).any())
    return {
        "importance_beats_prefix": pair("importance", "prefix", "prefix"),
        "random_worse_than_prefix": pair("prefix", "random", "random (mean of its seeds)"),
        "choice_of_blocks_matters": _choice_matters(comparisons, frame, confidence) if asked else None,
        "depth_is_a_scalar": _is_scalar(comparisons, frame, confidence) if asked else None,
    }


def withhold(comparisons: Entries, answers: dict[str, Any], reason: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The same comparisons and answers without what they claim; their numbers stay."""
    bare = {
        key: answer
        and {name: value for name, value in answer.items() if name not in _CLAIMS}
        | {"answer": WITHHELD, "text": reason}
        for key, answer in answers.items()
    }
    return [{**entry, "verdict": WITHHELD} for entry in comparisons], bare


def _beats(mine: Entries, winner: str, versus: str, confidence: float) -> dict[str, Any]:
    name = winner.capitalize()
    if not mine:
        text = f"{name} and {versus} keep the same blocks: there is nothing to compare."
        return {"answer": "not shown", "text": text}
    sign = 1.0 if mine[0]["a"] == winner else -1.0
    (overall,) = (c for c in mine if c["num_active_blocks"] is None)
    at_count = [c for c in mine if c["num_active_blocks"] is not None]
    difference = sign * overall["difference"]
    low, high = sorted(sign * bound for bound in overall["simultaneous_ci"])
    counts = [c["num_active_blocks"] for c in at_count]
    # what differs, and in which direction seen from the winner
    sure = {c["num_active_blocks"]: sign * c["difference"] for c in at_count if differs(c["p_holm"], confidence)}
    won, lost = [k for k in sure if sure[k] > 0], [k for k in sure if sure[k] < 0]
    tied = [count for count in counts if count not in won and count not in lost]
    text = (
        f"{name} minus {versus}, {'averaged over' if len(counts) > 1 else 'at'} {list_counts(counts)} active blocks: "
        f"{difference:+.3f} [{low:+.3f}, {high:+.3f}], p = {_p(overall['p_holm'])} (Holm). "
        f"Better at {list_counts(won)}, worse at {list_counts(lost)}, tied at {list_counts(tied)}."
    )
    return {
        "answer": _direction(difference if differs(overall["p_holm"], confidence) else 0.0, won, lost),
        "text": text,
        "difference": difference,
        "ci": [low, high],
        "p_holm": overall["p_holm"],
        "better_at": won,
        "worse_at": lost,
        "num_tied": len(tied),
    }


def _direction(mean: float, won: Sequence[int], lost: Sequence[int]) -> str:
    """The answer by what differs: the mean (0 if it does not), and the numbers of blocks in either direction.

    >>> _direction(0.1, [4], []), _direction(-0.1, [], []), _direction(0.1, [4], [8])
    ('yes', 'no', 'depends on depth')
    >>> _direction(0.0, [4], []), _direction(0.0, [], [])
    ('depends on depth', 'not shown')
    """
    up, down = bool(won) or mean > 0, bool(lost) or mean < 0
    if not (up or down):
        return "not shown"
    if (up and down) or mean == 0:
        return "depends on depth"
    return "yes" if up else "no"


def _all_pairs(comparisons: Entries, confidence: float) -> tuple[list[dict[str, Any]], list[int], float | None]:
    """Comparisons at equal counts; corrected over all of them together, where some differ, and the smallest p-value."""
    at_count = [c for c in comparisons if c["num_active_blocks"] is not None]
    adjusted = holm([c["p_value"] for c in at_count]).tolist() if at_count else []
    different = sorted({c["num_active_blocks"] for c, p in zip(at_count, adjusted) if differs(p, confidence)})
    return at_count, different, min(adjusted, default=None)


def _choice_matters(comparisons: Entries, frame: pd.DataFrame, confidence: float) -> dict[str, Any]:
    at_count, different, smallest = _all_pairs(comparisons, confidence)
    if smallest is None:
        return {"answer": "not shown", "text": "No two policies gave different masks of equal size."}
    compared = sorted({c["num_active_blocks"] for c in at_count})
    spread = frame.groupby("num_active_blocks")["quality"].agg(lambda values: values.max() - values.min())[compared]
    widest = int(spread.idxmax())
    here = frame[frame["num_active_blocks"] == widest].set_index("policy")["quality"]
    text = (
        f"Range of quality over policies at {list_counts(compared)} active blocks: median "
        f"{spread.median():.3f}, largest {spread.max():.3f} at {widest} ({here.idxmax()} {here.max():.3f}, "
        f"{here.idxmin()} {here.min():.3f}). Some "
        f"pair differs at {list_counts(different)} (corrected over all {len(at_count)} tests, smallest p = "
        f"{_p(smallest)}). The range of several noisy values is never below zero: trust the tests, not the range alone."
    )
    return {
        "answer": "yes" if different else "not shown",
        "text": text,
        "significant_at": different,
        "range": {str(k): float(v) for k, v in spread.items()},
        "smallest_p_holm": smallest,
    }


def _is_scalar(comparisons: Entries, frame: pd.DataFrame, confidence: float) -> dict[str, Any]:
    at_count, different, _ = _all_pairs(comparisons, confidence)
    # where all masks are the same (all blocks active) there is nothing to explain
    compared = sorted({c["num_active_blocks"] for c in at_count})
    share = variance_explained(frame[frame["num_active_blocks"].isin(compared)])
    text = "no two policies with equally many blocks differ on these samples"
    if different:
        text = f"at {list_counts(different)} active blocks two policies with equally many blocks differ"
    text += f" (corrected over all {len(at_count)} tests)."
    if share is not None:
        explained = f"explains {share:.0%} of the variance of quality between policies and counts"
        text = f"The number of active blocks ({list_counts(compared)}) alone {explained}; {text}"
    return {
        "answer": "no" if different else "not shown",
        "text": text[0].upper() + text[1:],
        "variance_explained": share,
        "counterexamples_at": different,
    }


def variance_explained(frame: pd.DataFrame) -> float | None:
    """Share of the variance of quality that the number of active blocks explains (R squared of a one-way layout).

    None where the share would be 0 or 1 whatever was measured (two points, one count, one policy per count), and where
    quality does not vary.
    """
    counts = frame["num_active_blocks"].nunique()
    if len(frame) <= 2 or counts < 2 or counts == len(frame):
        return None
    total = float(((frame["quality"] - frame["quality"].mean()) ** 2).sum())
    if total <= 1e-12:  # means of equal scores can differ in their last bits
        return None
    within = frame["quality"] - frame.groupby("num_active_blocks")["quality"].transform("mean")
    return 1.0 - float((within**2).sum()) / total


def _p(value: float) -> str:
    return f"{value:.1g}" if value < 0.001 else f"{value:.3f}"
