"""``lit-depth importance``."""
