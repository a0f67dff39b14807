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
from lit_depth.functional.statistics.raced import raced_stability, raced_winner
from lit_depth.functional.statistics.rank import RankCorrelation, spearman
from lit_depth.functional.statistics.sequential import confidence_sequence, log_evidence
from lit_depth.functional.statistics.stability import Stability, best_of, decision_stability, least
from lit_depth.functional.statistics.transfer import transfer_regret
from lit_depth.functional.statistics.winner import Winner, winner_interval

__all__ = [
    "FamilyRow",
    "Floats",
    "Interval",
    "RankCorrelation",
    "Stability",
    "Winner",
    "best_of",
    "cluster_covariance",
    "cluster_sums",
    "confidence_sequence",
    "decision_stability",
    "holm",
    "least",
    "log_evidence",
    "mean_intervals",
    "paired_comparisons",
    "paired_intervals",
    "pairwise_sign_flip_tests",
    "raced_stability",
    "raced_winner",
    "separate_comparisons",
    "sign_flip_tests",
    "spearman",
    "transfer_regret",
    "winner_interval",
]
