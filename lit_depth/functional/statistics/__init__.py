"""Paired tests, intervals of means, families of comparisons, sequential evidence and rank correlation.

How they were chosen, and how often the intervals cover, stands in ``docs/statistics.md``.
"""

from lit_depth.functional.statistics.clusters import Floats, cluster_covariance, cluster_sums
from lit_depth.functional.statistics.intervals import (
    FamilyRow,
    Interval,
    mean_intervals,
    paired_comparisons,
    paired_intervals,
    separate_comparisons,
)
from lit_depth.functional.statistics.paired_tests import holm, pairwise_sign_flip_tests, sign_flip_tests
from lit_depth.functional.statistics.rank import RankCorrelation, spearman
from lit_depth.functional.statistics.sequential import confidence_sequence, log_evidence

__all__ = [
    "FamilyRow",
    "Floats",
    "Interval",
    "RankCorrelation",
    "cluster_covariance",
    "cluster_sums",
    "confidence_sequence",
    "holm",
    "log_evidence",
    "mean_intervals",
    "paired_comparisons",
    "paired_intervals",
    "pairwise_sign_flip_tests",
    "separate_comparisons",
    "sign_flip_tests",
    "spearman",
]
