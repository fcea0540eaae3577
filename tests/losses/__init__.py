"""Tests of parlai_safety.losses: a reference in numpy, checks that take the loss, and mutants that the checks catch."""
