"""What each token of a prompt does for the final position of every block."""
