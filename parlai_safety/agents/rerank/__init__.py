"""Reranking: the least unsafe of several replies."""
