"""Does an answer contain a reference? For models that answer in sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lit_depth.functional.arguments import checked
from lit_depth.metrics.base import SampleMetric, check_references


@checked
def contains(prediction: str, references: Sequence[str]) -> float:
    """1.0 if a reference stands in the prediction as whole words, else 0.0.

    Case and white space do not count. Long answers score easily: one that lists every possibility is right too.

    Args:
        prediction: Answer of the model.
        references: At least one accepted answer.

    Returns:
        0.0 or 1.0.

    Raises:
        ValueError: If there is no reference, or if ``references`` is a bare string.

    Example:
        >>> contains("I see a red car.", ["Red"]), contains("It is bored.", ["red"])
        (1.0, 0.0)
    """
    check_references(references)
    answer = " ".join(prediction.casefold().split())
    wanted = (" ".join(reference.casefold().split()).removesuffix(".") for reference in references)
    # look-arounds and not \b, which needs a letter at the reference's own ends: "$3" has none
    return float(any(text and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", answer) for text in wanted))


class Contains(SampleMetric):
    """Share of samples whose prediction contains a reference; see :func:`contains`.

    Example:
        >>> metric = Contains()
        >>> metric.update(["a red car", "blue"], [["red"], ["red"]])
        >>> metric.compute()
        tensor(0.5000)
    """

    @staticmethod
    def score(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
        """Score of one answer, 0.0 or 1.0."""
        return contains(prediction, references)
