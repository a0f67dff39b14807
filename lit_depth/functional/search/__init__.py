"""Which units cost least when they are removed together."""
