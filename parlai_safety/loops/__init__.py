"""Drivers of long jobs that alternate training, generating and judging, and that resume."""
