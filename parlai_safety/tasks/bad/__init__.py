"""Bot-Adversarial Dialogue."""
