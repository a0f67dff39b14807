"""``lit-depth search``."""
