"""Real preference pairs."""
