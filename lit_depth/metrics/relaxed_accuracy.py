"""Relaxed accuracy: numbers may be off by five per cent (chart_qa, plot_qa)."""

import math
from collections.abc import Sequence

from lit_depth.functional.arguments import checked
from lit_depth.metrics.base import SampleMetric, check_references

TOLERANCE = 0.05


@checked
def relaxed_accuracy(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the prediction is any reference, or within five per cent of one that is a non-zero number, else 0.0.

    ``50%`` is the number 0.5. ``1,234``, ``14 million``, ``nan`` and what is infinite (``1e400``) are no numbers: they,
    and the target 0, are compared as text, without regard to case. Methani et al., "PlotQA", 2020
    (https://arxiv.org/abs/1909.00997) and Masry et al., "ChartQA", 2022 (https://arxiv.org/abs/2203.10244, section
    5.1), as pix2struct's evaluator decides the details (but there ``nan`` and ``inf`` are numbers, and so not even
    equal to themselves).

    Args:
        prediction: Answer of the model.
        references: At least one accepted answer.

    Returns:
        0.0 or 1.0.

    Raises:
        ValueError: If there is no reference, or if ``references`` is a bare string.

    Example:
        >>> relaxed_accuracy("14.7", ["14"])
        1.0
        >>> relaxed_accuracy("50", ["50%"])
        0.0
    """
    check_references(references)
    return float(any(_is_close(prediction.strip(), reference.strip()) for reference in references))


def _is_close(answer: str, target: str) -> bool:
    answer_number, target_number = _number(answer), _number(target)
    if answer_number is not None and target_number:
        return abs(answer_number - target_number) / abs(target_number) <= TOLERANCE
    return answer.lower() == target.lower()


def _number(text: str) -> float | None:
    try:
        number = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class RelaxedAccuracy(SampleMetric):
    """Share of samples that :func:`relaxed_accuracy` accepts.

    Example:
        >>> metric = RelaxedAccuracy()
        >>> metric.update(["14.7", "50"], [["14"], ["50%"]])
        >>> metric.compute()
        tensor(0.5000)
    """

    @staticmethod
    def score(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
        """Score of one answer, 0.0 or 1.0."""
        return relaxed_accuracy(prediction, references)
