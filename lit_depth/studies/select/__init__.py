"""``lit-depth select``."""
