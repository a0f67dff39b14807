"""Which blocks run: found, chosen by policies, skipped with their KV cache."""
