"""CIDEr-D: consensus of a caption with the captions of people (coco_caption)."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lit_depth.functional.arguments import checked
from lit_depth.metrics.base import check_one_each, check_references
from lit_depth.metrics.caption_tokens import tokenize_caption

MAX_ORDER = 4
SIGMA = 6.0
SCALE = 10.0

Ngram = tuple[str, ...]
# weight of every n-gram by order, length of these vectors, number of bigrams
Vectors = tuple[list[dict[Ngram, float]], list[float], int]


class ReferenceCorpus:
    """Reference captions with their document frequencies, prepared once and compared with many sets of predictions.

    Args:
        references: One non-empty sequence of reference captions per image.

    Raises:
        ValueError: If there is no image, or one without references, or if a bare string stands for a sequence.
    """

    @checked
    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        check_references(references)
        for captions in references:
            check_references(captions)
        counts = [[_count_ngrams(caption) for caption in captions] for captions in references]
        # in how many images a reference has the n-gram
        self._frequency = Counter(ngram for image in counts for ngram in set().union(*image))
        self._log_images = math.log(len(references))
        self._references = [[self._vectors(caption) for caption in image] for image in counts]

    @checked
    def score(self, predictions: Sequence[str]) -> list[float]:
        """CIDEr-D of one prediction per image, in the order of the references.

        Raises:
            ValueError: If there are not as many predictions as images, or if ``predictions`` is a bare string.
        """
        if isinstance(predictions, str) or len(predictions) != len(self._references):
            raise ValueError(
                f"expected one predicted caption for each of {len(self._references)} images, got {len(predictions)}"
            )
        return [self._score(text, image) for text, image in zip(predictions, self._references)]

    def _score(self, prediction: str, references: list[Vectors]) -> float:
        vectors = self._vectors(_count_ngrams(prediction))
        similarity = sum(_similarity(vectors, reference) for reference in references)
        return SCALE * similarity / len(references)

    def _vectors(self, counts: Counter[Ngram]) -> Vectors:
        weights: list[dict[Ngram, float]] = [{} for _ in range(MAX_ORDER)]
        for ngram, count in counts.items():
            # an n-gram that no reference has weighs as much as one that a single image has
            inverse_frequency = self._log_images - math.log(max(1, self._frequency[ngram]))
            weights[len(ngram) - 1][ngram] = count * inverse_frequency
        norms = [math.sqrt(sum(weight**2 for weight in order.values())) for order in weights]
        return weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _count_ngrams(caption: str) -> Counter[Ngram]:
    words = tokenize_caption(caption)
    return Counter(
        tuple(words[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(words) - order + 1)
    )


def _similarity(prediction: Vectors, reference: Vectors) -> float:
    """Mean over orders of the clipped cosine, damped by the difference in length."""
    total = 0.0
    for weights, norm, other_weights, other_norm in zip(*prediction[:2], *reference[:2]):
        if norm and other_norm:
            shared = (ngram for ngram in weights if ngram in other_weights)
            # to repeat a word more often than the reference does earns nothing
            clipped = sum(min(weights[ngram], other_weights[ngram]) * other_weights[ngram] for ngram in shared)
            total += clipped / (norm * other_norm)
    length_difference = prediction[2] - reference[2]
    return total / MAX_ORDER * math.exp(-(length_difference**2) / (2 * SIGMA**2))


@checked
def cider_d(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """CIDEr-D of a corpus: one caption per image against several by people.

    Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", 2015 (https://arxiv.org/abs/1411.5726),
    computed as the COCO caption evaluation does: n-grams of one to four words by
    :func:`~lit_depth.metrics.tokenize_caption`, weighted by their rarity among the images of *this* corpus, clipped
    cosine similarity, a Gaussian penalty (sigma 6, in bigrams) on the difference in length, times ten.

    The score belongs to the corpus. Never average it over batches: with other images, words have other weights. A
    corpus of one image scores 0 by construction, since every word is in all of its images. To compare several sets of
    predictions for the same images, prepare a :class:`ReferenceCorpus` once.

    Args:
        predictions: One caption per image.
        references: One non-empty sequence of reference captions per image.

    Returns:
        The mean over images, and the score of every image, each 0.0 to 10.0.

    Raises:
        ValueError: If the lengths differ, if there is no image, or one without references, or if a bare string stands
            for a sequence.

    Example:
        >>> mean, scores = cider_d(["a cat sleeps", "a dog"], [["a cat sleeps"], ["the dog runs", "a dog"]])
        >>> round(mean, 4), [round(score, 4) for score in scores]
        (5.3559, [7.5, 3.2117])
        >>> cider_d(["a cat sleeps"], [["a cat sleeps"]])
        (0.0, [0.0])
    """
    scores = ReferenceCorpus(references).score(predictions)
    return math.fsum(scores) / len(scores), scores


class CIDErD(Metric):
    """CIDEr-D over all batches and processes, computed once from all captions; see :func:`cider_d`.

    Every image must be given once, over all batches and processes. The captions are the state (as bytes, so that
    torchmetrics can gather them), so memory grows with the corpus: about 400 bytes for an image with five
    references.

    Args:
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = CIDErD()
        >>> metric.update(["a cat sleeps"], [["a cat sleeps"]])
        >>> metric.update(["a dog"], [["the dog runs", "a dog"]])
        >>> metric.compute()
        tensor(5.3559)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    max_score = SCALE
    # there is no score of one sample alone: see the class
    corpus = ReferenceCorpus
    captions: list[torch.Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("captions", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all captions."""
        super().reset()
        # A process without samples would take part in the gathering with an empty float tensor: types must agree.
        self.captions = [torch.empty(0, dtype=torch.uint8, device=self.device)]

    @checked
    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add a batch.

        Args:
            predictions: One caption per image.
            references: One non-empty sequence of reference captions per image.

        Raises:
            ValueError: If the lengths differ, or if an image has no references.
        """
        check_one_each(predictions, references=references)
        for captions in references:
            check_references(captions)
        # JSON in ASCII has no line feed of its own
        lines = [json.dumps([prediction, list(image)]) + "\n" for prediction, image in zip(predictions, references)]
        encoded = bytearray("".join(lines), "ascii")
        if encoded:
            self.captions.append(torch.frombuffer(encoded, dtype=torch.uint8).to(self.device))

    def compute(self) -> torch.Tensor:
        """CIDEr-D of all captions, a scalar tensor.

        Raises:
            ValueError: If there are none.
        """
        text = bytes(dim_zero_cat(self.captions).cpu().numpy()).decode("ascii")
        samples = [json.loads(line) for line in text.splitlines()]
        mean, _ = cider_d([prediction for prediction, _ in samples], [references for _, references in samples])
        return torch.tensor(mean, device=self.device)
