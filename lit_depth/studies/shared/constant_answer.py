"""The best constant answer: what a task's metric gives to one and the same answer to every question.

A model that scores less than that was not shown to do the task, and nothing that is said of its masks is a finding. No
model is needed, and no image is decoded: the answer follows from the references alone.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_depth.data import DepthDataModule, Sample
from lit_depth.data.task import Nouns
from lit_depth.metrics import clean_prediction
from lit_depth.metrics.base import new_metric
from lit_depth.studies.shared.scores import ConstantAnswer, FoundAnswer, Scores, interval_entry

MAX_CANDIDATES = 50
# of a larger calibration split, evenly spread: more samples would hardly change the choice, and take minutes
MAX_SAMPLES = 5_000


def score_constant(answer: str, samples: Sequence[Sample], metric: Any) -> NDArray[np.float64]:
    """Scores ``[num_samples]`` of one answer to every question, by a metric class of `lit_depth.metrics`.

    Those of a corpus metric such as CIDEr-D are within the corpus of these samples.
    """
    if not any(hasattr(metric, name) for name in ("corpus", "rate", "score")):
        raise ValueError(f"expected a metric of answers, got {getattr(metric, '__name__', type(metric).__name__)}")
    if hasattr(metric, "corpus"):
        return np.array(metric.corpus([sample.references for sample in samples]).score([answer] * len(samples)))
    if hasattr(metric, "rate"):
        return np.array([metric.rate(sample, answer)["score"] for sample in samples], dtype=np.float64)
    # many questions have the same references
    known: dict[Any, float] = {}
    for sample in samples:
        key = (sample.references, sample.options)
        if key not in known:
            known[key] = metric.score(answer, *key)
    return np.array([known[sample.references, sample.options] for sample in samples], dtype=np.float64)


def best_constant(samples: Sequence[Sample], metric: Any, most: int = MAX_CANDIDATES) -> tuple[str, int]:
    """The constant answer of the highest mean score, and how many were tried.

    Candidates are the most frequent reference answers, as they would be read from a model's output, and the letters of
    the options. Of equally good or frequent ones the first in alphabetical order is taken.

    Example:
        >>> from lit_depth.metrics import ExactMatch
        >>> answers = ["no", "yes", "yes", "2"]
        >>> samples = [Sample(str(n), str(n), None, "?", (answer,)) for n, answer in enumerate(answers)]
        >>> best_constant(samples, ExactMatch)
        ('yes', 3)
    """
    counts = Counter(clean_prediction(text) for sample in samples for text in sample.references)
    candidates = set(sorted(counts, key=lambda text: (-counts[text], text))[:most])
    candidates |= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: max(len(sample.options) for sample in samples)])
    corpus = metric.corpus([sample.references for sample in samples]) if hasattr(metric, "corpus") else None
    means = {
        text: float(np.mean(corpus.score([text] * len(samples)) if corpus else score_constant(text, samples, metric)))
        for text in candidates
    }
    # sums of equal scores in another order may differ in their last bits
    best = max(means.values()) - 1e-12
    return min(text for text, mean in means.items() if mean >= best), len(candidates)


def find_constant(datamodule: DepthDataModule, split: str) -> FoundAnswer:
    """`best_constant` of the calibration split; where the task has none, of the split that is reported on."""
    metric = new_metric(datamodule.task.metric)
    reason: str | None = None
    samples: list[Sample] = []
    try:
        samples = _spread(datamodule, "calibration")
        reason = None if samples else "the calibration split has no references"
    except ValueError:
        reason = "the task has no calibration split that can be read"
    if not samples:
        samples = _spread(datamodule, split)
    text, num_candidates = best_constant(samples, metric)
    return FoundAnswer(text, split if reason else "calibration", len(samples), num_candidates, reason)


def _spread(datamodule: DepthDataModule, split: str) -> list[Sample]:
    dataset = datamodule.eval_dataset(split)
    if len(dataset) > MAX_SAMPLES:
        dataset = dataset.take(np.linspace(0, len(dataset) - 1, MAX_SAMPLES).astype(int).tolist())
    return dataset.without_images()


def constant_scores(datamodule: DepthDataModule, split: str, names: Sequence[str]) -> ConstantAnswer:
    """The constant answer of one task, scored on the samples (``names``) of a split that were evaluated."""
    found = find_constant(datamodule, split)
    if found.split == split and found.reason is None:
        noun = Nouns.of(datamodule.task).sample
        found = found._replace(reason=f"these are the {noun}s reported on")
    samples = {sample.id: sample for sample in datamodule.eval_dataset(split).without_images()}
    metric = new_metric(datamodule.task.metric)
    return ConstantAnswer((found,), score_constant(found.text, [samples[name] for name in names], metric))


def describe_baseline(scores: Scores, confidence: float) -> dict[str, Any] | None:
    """The result's ``baseline`` entry: the constant answer beside the full model, sample by sample.

    Returns:
        None for scores without their constant answer; else ``answer`` (a text; of several tasks null), its ``quality``
        with interval, the ``difference`` full model less constant answer with interval and p-value, whether the full
        model has ``beaten`` it (the interval lies above 0), on which ``split`` it was found among ``num_candidates``,
        and the ``reason`` if these are the very questions reported on.
    """
    constant = scores.constant
    if constant is None:
        return None
    (quality,) = scores.mean_intervals(constant.scores[None], confidence)
    (found,) = scores.compare(scores.rows([scores.full_id]) - constant.scores, confidence)
    one = constant.found[0] if len(constant.found) == 1 else None
    return {
        "answer": one.text if one else None,
        **interval_entry(quality, "quality"),
        **interval_entry(found.interval, "difference"),
        "p_value": found.p_value,
        "beaten": found.interval.low > 0,
        "split": " / ".join(dict.fromkeys(each.split for each in constant.found)),
        "num_candidates": sum(each.num_candidates for each in constant.found),
        "reason": " / ".join(dict.fromkeys(each.reason for each in constant.found if each.reason)) or None,
    }
