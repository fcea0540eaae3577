"""Real ordinary dialogue."""
