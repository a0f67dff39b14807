"""``lit-depth export``."""
