"""``lit-depth interactions``."""
