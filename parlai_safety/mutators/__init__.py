"""Mutators, used as `--mutators safety_<name>`."""
