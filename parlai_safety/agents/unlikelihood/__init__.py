"""Unlikelihood training on replies to avoid."""
