"""The shells that per-sample metrics share: keep one score per sample, report the mean."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lit_depth.functional.arguments import checked
from lit_depth.functional.class_paths import object_at

_WAYS = ("score", "corpus", "judge")
# what people type, and what stands in the results
SHORT_NAMES = {
    "agreement": "Agreement",
    "acc": "LikelihoodAccuracy",
    "acc_norm": "LikelihoodAccuracyPerCharacter",
    "anls": "ANLS",
    "chat_choice": "ChatChoiceAccuracy",
    "cider": "CIDErD",
    "contains": "Contains",
    "exact": "ExactMatch",
    "logprob_per_token": "TokenLogProbability",
    "multiple_choice": "MultipleChoiceAccuracy",
    "relaxed": "RelaxedAccuracy",
    "vqa": "VQAAccuracy",
}
Lists = Sequence[Sequence[str]]  # one for each sample


def check_references(references: Sequence[Any]) -> None:
    """Refuse an empty list of references, and a bare string, which would be compared letter by letter.

    Raises:
        ValueError: If it is one of the two.
    """
    if isinstance(references, str) or not len(references):
        raise ValueError(f"expected references, a list of at least one accepted answer, got {references!r}")


def check_one_each(predictions: Sequence[str], **lists: Sequence[Any]) -> None:
    """Refuse lists, given by name, that do not have one entry per prediction."""
    for name, values in lists.items():
        if len(values) != len(predictions):
            raise ValueError(
                f"expected one list of {name} per prediction, got {len(predictions)} predictions and {len(values)} "
                f"lists of {name}"
            )


@checked
def resolve(name: str) -> type[Metric]:
    """The metric of that name in `lit_depth.metrics`, or at that class path.

    >>> resolve("ExactMatch") is resolve("lit_depth.metrics.ExactMatch") is resolve("exact")
    True

    Args:
        name: Name, one of `SHORT_NAMES`, or ``package.module.Class`` of a :class:`torchmetrics.Metric` of your own: its
            ``score(prediction, references, options)`` rates one answer (see `SampleMetric`), or its
            ``corpus(references)`` makes an object whose ``score(predictions)`` rates those of all samples together (see
            `CIDErD`), or its ``judge(sample, likelihoods)`` rates those of continuations (see
            `lit_depth.metrics.likelihood`). ``max_score`` is the largest score of a sample, 1 unless it says otherwise;
            a search counts scores as shares of it. ``also`` may name metrics that score the same answers in another
            way, to be told beside it. An answer comes reduced to one line, see `lit_depth.metrics.clean_prediction`,
            unless ``reads_whole`` is true.

    Raises:
        ValueError: If there is none, or it has neither.
    """
    name = SHORT_NAMES.get(name, name)
    kind = object_at(name, "a metric") if "." in name else getattr(import_module("lit_depth.metrics"), name, None)
    if not (isinstance(kind, type) and issubclass(kind, Metric)) or not any(hasattr(kind, way) for way in _WAYS):
        raise ValueError(
            "expected the name of a metric in lit_depth.metrics, such as ExactMatch, or the class path of a "
            f"torchmetrics.Metric with {' or '.join(_WAYS)}, got {name!r}"
        )
    return kind


def new_metric(name: str) -> Any:
    """A metric of that name or class path, see `resolve`, whose ``max_score`` is a number in any case.

    Raises:
        ValueError: If there is none, or it cannot be made without arguments.
    """
    try:
        metric: Any = resolve(name)()
    except TypeError as error:
        raise ValueError(f"expected a metric that can be made without arguments, got {name!r}: {error}") from error
    metric.max_score = getattr(metric, "max_score", 1.0)
    return metric


def readings(name: str) -> tuple[str, ...]:
    """A metric that has a second reading, and that; nothing of any other.

    >>> readings("MMMUAccuracy"), readings("vqa"), readings("agreement")
    (('MMMUAccuracy', 'chat_choice'), (), ())
    """
    kind = resolve(name)
    also = getattr(kind, "also", ())
    return (name, *also) if also and not getattr(kind, "against_full", False) else ()


class SampleMetric(Metric):
    """Mean of one score per sample. A subclass gives :meth:`score`; nothing else is needed.

    The per-sample scores stay in the state ``scores`` (gathered over processes by torchmetrics), so that paired
    statistics can be computed from them; these need the largest possible score, ``max_score``, the smallest being 0.

    Args:
        **kwargs: Arguments of :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    max_score = 1.0
    also: tuple[str, ...] = ()
    reads_whole = False
    scores: list[torch.Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("scores", default=[], dist_reduce_fx="cat")

    @staticmethod
    def score(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
        """Score of one prediction against the references of its sample; higher is better.

        ``options`` are the texts of a multiple-choice question; the other metrics leave them aside.
        """
        raise NotImplementedError

    @checked
    def update(self, predictions: Sequence[str], references: Lists, options: Lists | None = None) -> None:
        """Add a batch.

        Args:
            predictions: One answer per sample.
            references: One non-empty sequence of reference answers per sample.
            options: One sequence of option texts per sample; None where no sample has options.

        Raises:
            ValueError: If the lengths differ, or if :meth:`score` refuses a sample.
        """
        options = [()] * len(predictions) if options is None else options
        check_one_each(predictions, references=references, options=options)
        if not predictions:
            return
        scores = [self.score(*sample) for sample in zip(predictions, references, options)]
        self.scores.append(torch.tensor(scores, dtype=torch.float32, device=self.device))

    def compute(self) -> torch.Tensor:
        """Mean over all samples, a scalar tensor."""
        return dim_zero_cat(self.scores).mean()


class ChoiceMetric(SampleMetric):
    """A sample metric that reads a choice among options, and counts the answers in which it found none.

    Such an answer scores 0; the state ``parse_failed`` (summed over processes) says how many there were.
    """

    parse_failed: torch.Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("parse_failed", default=torch.tensor(0), dist_reduce_fx="sum")

    @staticmethod
    def parses(prediction: str, options: Sequence[str] = ()) -> bool:
        """Whether a choice among the options can be read from the prediction."""
        raise NotImplementedError

    @checked
    def update(self, predictions: Sequence[str], references: Lists, options: Lists | None = None) -> None:
        """Add a batch, as :meth:`SampleMetric.update` does, and count the answers without a choice."""
        super().update(predictions, references, options)
        options = [()] * len(predictions) if options is None else options
        self.parse_failed += sum(not self.parses(*sample) for sample in zip(predictions, options))
