"""Average normalised Levenshtein similarity (doc_qa, info_qa, st_qa)."""

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from lit_depth.functional.arguments import checked
from lit_depth.metrics.base import SampleMetric, check_references

THRESHOLD = 0.5


@checked
def anls(prediction: str, references: Sequence[str]) -> float:
    """Similarity of the prediction to the nearest reference, 0 to 1, and 0 below one half.

    Both sides are lower-cased and their white space is collapsed. The similarity is 1 - edits / length of the longer
    text; two empty texts are alike, and a similarity of exactly 0.5 counts. Biten et al., "Scene Text Visual Question
    Answering", 2019 (https://arxiv.org/abs/1905.13648), as the evaluation script of the Robust Reading Competition
    computes it, but for one detail: that script divides by the length *before* white space is collapsed, so that
    padding an answer with spaces would raise its score.

    Args:
        prediction: Answer of the model.
        references: At least one accepted answer.

    Returns:
        A score from 0.5 to 1.0, or 0.0.

    Raises:
        ValueError: If there is no reference, or if ``references`` is a bare string.

    Example:
        >>> anls("10 Mai", ["10 May", "May 10th"])
        0.8333333333333334
        >>> anls("abc", ["abxyz"])
        0.0
    """
    check_references(references)
    answer = _normalize(prediction)
    best = max(_similarity(answer, _normalize(reference)) for reference in references)
    return best if best >= THRESHOLD else 0.0


def _normalize(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(a: str, b: str) -> float:
    length = max(len(a), len(b))
    return 1.0 - Levenshtein.distance(a, b) / length if length else 1.0


class ANLS(SampleMetric):
    """Mean of :func:`anls` over samples.

    Example:
        >>> metric = ANLS()
        >>> metric.update(["10 Mai", "abc"], [["10 May"], ["abxyz"]])
        >>> metric.compute()
        tensor(0.4167)
    """

    @staticmethod
    def score(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
        """Score of one answer, 0 to 1."""
        return anls(prediction, references)
