"""Cheap scores of block importance, from one forward and one backward."""

from lit_depth.functional.importance.methods import METHODS as METHODS
