"""Random scores for the tests of the statistics."""

from __future__ import annotations

from typing import Any

import numpy as np

from lit_depth.functional.statistics import Interval, paired_intervals, sign_flip_tests


def paired_interval(differences: Any, *args: Any, **options: Any) -> Interval:
    """`paired_intervals` of one row ``[num_samples]``."""
    return paired_intervals(np.asarray(differences, dtype=np.float64)[None], *args, **options)[0]


def sign_flip_test(differences: Any, *args: Any, **options: Any) -> float:
    """`sign_flip_tests` of one row ``[num_samples]``."""
    return float(sign_flip_tests(np.asarray(differences, dtype=np.float64)[None], *args, **options)[0])


def clustered(generator: np.random.Generator, num_samples: int, num_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences of mean 0 with an image effect, and the image of each; cluster sizes differ."""
    clusters = np.concatenate([np.arange(num_clusters), generator.integers(num_clusters, size=num_samples)])[
        :num_samples
    ]
    return generator.normal(size=num_clusters)[clusters] + generator.normal(size=num_samples), clusters


def score_table(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """Differences ``[1 to 4 rows, 2 to 300 samples]`` in [-1, 1], few or many, of one kind, and clusters or None."""
    num_samples = int(np.exp(generator.uniform(np.log(2), np.log(301))))
    shape = int(generator.integers(1, 5)), num_samples
    kind = generator.choice(["binary", "graded", "continuous", "equal"], p=[0.35, 0.35, 0.2, 0.1])
    if kind == "equal":
        values = np.full(shape, generator.choice([0.0, 0.1, -0.3, 1.0]))
    else:
        sizes = {
            "binary": np.ones(shape),
            "graded": generator.choice([0.1, 0.3, 0.4, 0.6, 0.7, 0.9, 1.0], shape),
            "continuous": generator.random(shape),
        }[kind]
        # most rows near the border of significance
        differing = generator.choice([0.02, 0.1, 0.5, 1.0])
        losses = np.clip(0.5 + generator.normal(0, 1.2, (shape[0], 1)) / np.sqrt(max(1, differing * num_samples)), 0, 1)
        signs = np.where(generator.random(shape) < losses, 1.0, -1.0)
        values = np.where(generator.random(shape) < differing, sizes * signs, 0.0)
    if num_samples < 4 or generator.random() < 0.4:
        return values, None
    num_clusters = int(generator.integers(2, num_samples))
    return values, np.concatenate([[0, 1], generator.integers(num_clusters, size=num_samples - 2)])
