"""Exact match after light normalisation (figure_qa, dv_qa, tally_qa)."""

from collections.abc import Sequence

from lit_depth.functional.arguments import checked
from lit_depth.metrics.base import SampleMetric, check_references


@checked
def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the prediction equals any reference, else 0.0.

    Both sides are stripped, casefolded, and lose one final period. Numbers are compared as text: ``3.0`` is not ``3``.
    Where two words mean the same answer (figure_qa: ``1`` and ``yes``), the task lists both as references.

    Args:
        prediction: Answer of the model.
        references: At least one accepted answer.

    Returns:
        0.0 or 1.0.

    Raises:
        ValueError: If there is no reference, or if ``references`` is a bare string.

    Example:
        >>> exact_match("Soil.", ["soil"])
        1.0
        >>> exact_match("3.0", ["3"])
        0.0
    """
    check_references(references)
    answer = _normalize(prediction)
    return float(any(answer == _normalize(reference) for reference in references))


def _normalize(text: str) -> str:
    return text.strip().casefold().removesuffix(".").rstrip()


class ExactMatch(SampleMetric):
    """Share of samples whose prediction equals a reference; see :func:`exact_match`.

    Example:
        >>> metric = ExactMatch()
        >>> metric.update(["3", "cat"], [["3"], ["dog"]])
        >>> metric.compute()
        tensor(0.5000)
    """

    @staticmethod
    def score(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
        """Score of one answer, 0.0 or 1.0."""
        return exact_match(prediction, references)
