"""Wikipedia toxic comments."""
