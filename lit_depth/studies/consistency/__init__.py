"""``lit-depth consistency``."""
