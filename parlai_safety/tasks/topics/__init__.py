"""Sentences on sensitive topics."""
