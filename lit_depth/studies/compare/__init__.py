"""``lit-depth compare``."""
