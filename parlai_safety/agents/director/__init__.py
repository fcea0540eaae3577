"""DIRECTOR: a generator with a class head."""
