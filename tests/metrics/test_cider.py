"""CIDEr-D: the reference vectors, an independent dense computation, and one corpus whatever the batches."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lit_depth
from lit_depth.metrics import CIDErD, ReferenceCorpus, cider_d

sentences = st.lists(st.sampled_from("a dog cat runs red on sofa".split()), max_size=7).map(" ".join)  # noqa: SIM905
corpora = st.lists(st.tuples(sentences, st.lists(sentences, min_size=1, max_size=3)), min_size=1, max_size=5)


def split(items: list[dict]) -> tuple[list[str], list[list[str]]]:
    return [item["prediction"] for item in items], [item["references"] for item in items]


def dense_cider(predictions: list[str], references: list[list[str]]) -> list[float]:
    """The formula of the paper over dense vectors of all n-grams of the corpus; captions are plain words."""
    scores = np.zeros(len(predictions))
    for order in range(1, 5):

        def grams(text: str, order: int = order) -> list[str]:
            words = text.split()
            return [" ".join(words[i : i + order]) for i in range(len(words) - order + 1)]

        texts = [*predictions, *(caption for image in references for caption in image)]
        vocabulary = sorted({gram for text in texts for gram in grams(text)})
        if not vocabulary:
            continue
        present = [[any(gram in grams(caption) for caption in image) for gram in vocabulary] for image in references]
        weight = np.log(len(references)) - np.log(np.maximum(np.sum(present, axis=0), 1))

        def vector(text: str, vocabulary=vocabulary, weight=weight, grams=grams) -> np.ndarray:
            return np.array([grams(text).count(gram) for gram in vocabulary]) * weight

        for index, (prediction, image) in enumerate(zip(predictions, references)):
            for caption in image:
                a, b = vector(prediction), vector(caption)
                norm = np.linalg.norm(a) * np.linalg.norm(b)
                cosine = np.minimum(a, b) @ b / norm if norm else 0.0
                gap = max(len(prediction.split()) - 1, 0) - max(len(caption.split()) - 1, 0)
                scores[index] += 10 / 4 / len(image) * cosine * math.exp(-(gap**2) / 72)
    return scores.tolist()


def test_equals_reference_vectors(vectors) -> None:
    for vector in vectors("cider"):
        mean, scores = cider_d(*split(vector["items"]))
        assert mean == pytest.approx(vector["scores"]["CIDEr"], abs=1e-6), vector["id"]
        assert scores == pytest.approx(vector["scores"]["CIDEr_per_image"], abs=1e-6), vector["id"]


@settings(deadline=None)
@given(corpora)
def test_equals_the_dense_formula(corpus: list[tuple[str, list[str]]]) -> None:
    predictions, references = map(list, zip(*corpus))
    mean, scores = cider_d(predictions, references)
    assert scores == pytest.approx(dense_cider(predictions, references), abs=1e-9)
    assert mean == pytest.approx(sum(scores) / len(scores))
    assert CIDErD.max_score == 10.0 and all(0.0 <= score <= 10.0 + 1e-9 for score in scores)


@given(corpora, st.randoms(use_true_random=False))
def test_order_of_images_and_references(corpus: list[tuple[str, list[str]]], random) -> None:
    scores = cider_d(*zip(*corpus))[1]
    order = random.sample(range(len(corpus)), len(corpus))
    shuffled = [(corpus[i][0], random.sample(corpus[i][1], len(corpus[i][1]))) for i in order]
    assert cider_d(*zip(*shuffled))[1] == pytest.approx([scores[i] for i in order], abs=1e-9)


def test_by_hand() -> None:
    """Words: "a" is in both images (weight 0), every other in one (weight log 2, which cancels)."""
    mean, scores = cider_d(["a cat sleeps", "a dog"], [["a cat sleeps"], ["the dog runs", "a dog"]])
    # the same caption: 1 for one, two and three words, and no four words to compare
    first = 10 * 3 / 4
    # one word in common of one and three; one bigram against two: damped by exp(-1 / 72)
    nearly = 1 / math.sqrt(3) / 4 * math.exp(-1 / 72)
    same = 2 / 4
    second = 10 * (nearly + same) / 2
    assert scores == pytest.approx([first, second])
    assert mean == pytest.approx((first + second) / 2)


def test_repeated_words_are_clipped() -> None:
    references = [["dog"], ["cat"]]
    assert cider_d(["dog", "cat"], references)[1] == pytest.approx([2.5, 2.5])
    # (min(3, 1) x 1) / (3 x 1), and two bigrams too many
    assert cider_d(["dog dog dog", "cat"], references)[1][0] == pytest.approx(2.5 / 3 * math.exp(-4 / 72))


@given(sentences, st.lists(sentences, min_size=1, max_size=3))
def test_one_image_scores_zero_by_construction(prediction: str, references: list[str]) -> None:
    assert cider_d([prediction], [references]) == (0.0, [0.0])


def test_empty_prediction_scores_zero() -> None:
    assert cider_d(["", "a cat"], [["a dog"], ["a cat"]])[1][0] == 0.0


def test_one_corpus_for_many_sets_of_predictions(vectors) -> None:
    predictions, references = split(vectors("cider")[0]["items"])
    corpus = ReferenceCorpus(references)
    for answers in (predictions, predictions[::-1], [""] * len(predictions), predictions):
        assert corpus.score(answers) == cider_d(answers, references)[1]


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "expected references"),
        (["a"], [[]], "expected references"),
        (["a"], ["a dog"], "expected references"),
        (["a"], "a", "expected references"),
        (["a"], [["a"], ["b"]], "each of 2 images, got 1"),
        ("ab", [["a"], ["b"]], "expected predictions|each of 2 images"),
    ],
)
def test_refuses(predictions, references, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cider_d(predictions, references)


# --- the Metric


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_metric_is_the_corpus_score_whatever_the_batches(vectors, size: int) -> None:
    vector = vectors("cider")[0]
    predictions, references = split(vector["items"])
    metric = CIDErD()
    for start in range(0, 4, size):
        metric.update(predictions[start : start + size], references[start : start + size])
    assert metric.compute().item() == pytest.approx(vector["scores"]["CIDEr"], abs=1e-6)


def test_mean_over_batches_is_another_number(vectors) -> None:
    """What a metric that is averaged over batches would say of the same captions."""
    predictions, references = split(vectors("cider")[0]["items"])
    halves = [cider_d(predictions[part], references[part])[0] for part in (slice(0, 2), slice(2, 4))]
    assert sum(halves) / 2 == pytest.approx(2.7490255, abs=1e-6)
    assert cider_d(predictions, references)[0] == pytest.approx(2.756821, abs=1e-6)


@given(corpora)
def test_metric_survives_any_text(corpus: list[tuple[str, list[str]]]) -> None:
    predictions, references = map(list, zip(*corpus))
    odd = "\n\u2028\x85 \ud800 \x00 \U0001f600 ÿ"
    predictions[0] += odd
    metric = CIDErD()
    metric.update(predictions, references)
    metric.update([], [])
    assert metric.compute().item() == pytest.approx(cider_d(predictions, references)[0], rel=1e-6, abs=1e-6)


def test_metric_forward_reset_and_clone() -> None:
    metric = CIDErD()
    metric(["a cat sleeps"], [["a cat sleeps"]])
    metric(["a dog"], [["the dog runs", "a dog"]])
    assert metric.compute().item() == pytest.approx(5.3559, abs=1e-4)
    assert metric.clone().compute() == metric.compute()
    metric.reset()
    with (
        pytest.raises(ValueError, match="expected references"),
        pytest.warns(UserWarning, match="before the ``update``"),
    ):
        metric.compute()
    metric.update(["a"], [["a"]])
    assert metric.compute() == 0.0 and torch.cat(metric.captions).dtype == torch.uint8


def test_metric_refuses() -> None:
    with pytest.raises(ValueError, match="got 2 predictions and 1 lists"):
        CIDErD().update(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="expected references"):
        CIDErD().update(["a"], ["a"])


WORKER = """
import json, sys
import torch.distributed as dist
from lit_depth.metrics import CIDErD, MultipleChoiceAccuracy
store, rank, corpus = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
caption, choice = CIDErD(), MultipleChoiceAccuracy()
for prediction, references in corpus[rank]:
    caption.update([prediction], [references])
    choice.update([prediction], [["A"]], [["dog", "a cat"]])
if not corpus[rank]:
    choice.update(["A", "?"], [["A"]] * 2, [["dog", "cat"]] * 2)
score = choice.compute().item()
with choice.sync_context():
    failed = choice.parse_failed.item()
print(json.dumps([caption.compute().item(), score, failed]))
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1], ids=["one process without samples", "uneven"])
def test_two_processes_give_the_score_of_one(tmp_path: Path, first: int) -> None:
    corpus = [
        ("a cat sleeps", ["a cat sleeps", "the cat"]),
        ("a dog", ["the dog runs on the grass", "a dog"]),
        ("ein Hund läuft", ["ein großer Hund läuft"]),
        ("a red sofa", ["a cat on a red sofa"]),
    ]
    shares = json.dumps([corpus[:first], corpus[first:]])
    environment = {**os.environ, "PYTHONPATH": str(Path(lit_depth.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", WORKER, str(tmp_path / "store")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    processes = [subprocess.Popen([*command, str(rank), shares], **pipes) for rank in range(2)]
    results = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    answers = [json.loads(out.splitlines()[-1]) for out, _ in results]
    assert answers[0] == answers[1]
    expected, _ = cider_d(*zip(*corpus))
    assert answers[0][0] == pytest.approx(expected, abs=1e-6)
    # every caption is no choice, nor is "?"; the "A" of an otherwise idle process is right
    extra = first == 0
    assert answers[0][1:] == [pytest.approx(1 / 6 if extra else 0.0), 5 if extra else 4]
