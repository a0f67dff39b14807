"""Scores of log-probabilities: multiple choice by the most probable option, and the probability of a text itself."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torchmetrics import MeanMetric

from lit_depth.functional.arguments import checked
from lit_depth.functional.choices import option_letters
from lit_depth.metrics.base import check_references
from lit_depth.metrics.multiple_choice import MultipleChoiceAccuracy


class Likelihood(NamedTuple):
    """What a model thinks of one continuation of a prompt.

    Attributes:
        logprob: Log-probability of all of its tokens together, in nats.
        num_tokens: How many these are.
        num_greedy: How many of them are the most likely ones.
    """

    logprob: float
    num_tokens: int
    num_greedy: int

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would write it."""
        return self.num_greedy == self.num_tokens


@checked
def most_likely(found: Sequence[Likelihood], options: Sequence[str], by_length: bool = False) -> str:
    """Letter of the option of the highest log-probability, the first of equal ones.

    As ``acc`` and ``acc_norm`` of lm-evaluation-harness 0.4 choose it (Gao et al., "The Language Model Evaluation
    Harness", https://doi.org/10.5281/zenodo.10256836).

    >>> found = [Likelihood(-2.0, 1, 0), Likelihood(-3.0, 2, 0)]
    >>> most_likely(found, ["cat", "crocodile"]), most_likely(found, ["cat", "crocodile"], by_length=True)
    ('A', 'B')

    Args:
        found: One for each option.
        options: Their texts.
        by_length: Divide each log-probability by the characters of its option.

    Raises:
        ValueError: If there are no options, or not one log-probability for each.
    """
    if len(options) == 0 or len(found) != len(options):
        raise ValueError(f"expected one log-probability for each option, got {len(found)} for {len(options)}")
    values = [each.logprob / max(1, len(option)) if by_length else each.logprob for each, option in zip(found, options)]
    return option_letters(options)[values.index(max(values))]


class LikelihoodAccuracy(MultipleChoiceAccuracy):
    """Share of samples whose right option has the highest log-probability (``acc`` of lm-evaluation-harness).

    It rates letters as `MultipleChoiceAccuracy` does; `judge` says which one a model chooses.
    """

    also: tuple[str, ...] = ()  # nothing is written that could be read in another way
    by_length = False
    told = ("acc", "acc_norm")

    def judge(self, sample: Any, found: Sequence[Likelihood]) -> dict[str, Any]:
        """What is recorded of a sample with options and one continuation for each.

        Returns:
            ``prediction``, a letter, its ``score``, and of both normalisations the score, ``acc`` and ``acc_norm``.
        """
        check_references(sample.references)
        letters = [most_likely(found, sample.options, by_length) for by_length in (False, True)]
        acc, acc_norm = (self.score(letter, sample.references, sample.options) for letter in letters)
        chosen = (letters[self.by_length], (acc, acc_norm)[self.by_length])
        return {**dict(zip(("prediction", "score"), chosen)), "acc": acc, "acc_norm": acc_norm}


class LikelihoodAccuracyPerCharacter(LikelihoodAccuracy):
    """The same with each log-probability divided by the characters of its option (``acc_norm``)."""

    by_length = True


class TokenLogProbability(MeanMetric):
    """Mean log-probability of a token of the continuation, in nats; its perplexity is ``exp`` of the negative.

    It has no lower bound, so no range is assumed in statistics. Samples count by their tokens.

    Example:
        >>> metric = TokenLogProbability()
        >>> metric.update([-1.0, -4.0], weight=[20, 10])
        >>> metric.compute()
        tensor(-2.)
    """

    max_score = math.inf

    def judge(self, sample: Any, found: Sequence[Likelihood]) -> dict[str, Any]:
        """What is recorded of a sample with one continuation: its ``score``, and its tokens as its ``weight``."""
        (only,) = found
        return {"score": round(only.logprob / only.num_tokens, 6), "weight": only.num_tokens}
