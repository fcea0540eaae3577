"""Labelled replies of adversarial rounds, by a manifest."""
