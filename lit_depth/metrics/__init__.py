"""Metrics on generated answers: one file each, a pure function and a torchmetrics shell."""

from lit_depth.metrics.exact_match import ExactMatch, exact_match
from lit_depth.metrics.text import clean_prediction

__all__ = ["ExactMatch", "clean_prediction", "exact_match"]
