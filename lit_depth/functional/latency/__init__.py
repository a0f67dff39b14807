"""Times of a generation, stage by stage, and what a latency budget affords."""
