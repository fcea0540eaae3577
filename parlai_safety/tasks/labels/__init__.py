"""Real replies judged in context."""
