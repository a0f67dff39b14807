"""Cheap scores of block importance, from one forward and one backward."""
