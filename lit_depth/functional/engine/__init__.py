"""Many masks in one pass, or one mask per row."""
