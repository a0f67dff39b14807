"""``lit-depth answers``."""
