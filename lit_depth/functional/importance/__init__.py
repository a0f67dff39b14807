"""Cheap scores of block importance, from one forward and one backward."""

from lit_depth.functional.importance.proxies import METHODS as METHODS
