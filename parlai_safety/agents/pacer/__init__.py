"""PACER: a judge guides some tokens, and chooses among whole replies."""
