"""Answers as the full model gives them: all that can be said where right answers are withheld."""

from collections.abc import Sequence

from lit_depth.metrics.base import SampleMetric, check_references


class Agreement(SampleMetric):
    """Share of answers that are, cleaned, those of the full model.

    `lit_depth.callbacks.MaskSweep` scores it after the loop; references are not looked at. Of questions with options it
    counts the answers in which a reading finds none.
    """

    against_full = True
    also: tuple[str, ...] = ("multiple_choice", "chat_choice")

    @staticmethod
    def score(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
        """Score of one answer; the only reference is the full model's.

        >>> Agreement.score("a cat", ["a cat"]), Agreement.score("a dog", ["a cat"])
        (1.0, 0.0)
        """
        check_references(references)
        return float(prediction == references[0])
