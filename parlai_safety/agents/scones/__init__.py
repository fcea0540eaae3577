"""Sigmoid-only training (SCONES)."""
