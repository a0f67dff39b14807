"""``lit-depth latency``."""
