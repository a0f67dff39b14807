"""``lit-depth tokens``."""
