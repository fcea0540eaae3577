"""CRINGE: contrastive iterative negative generation."""
