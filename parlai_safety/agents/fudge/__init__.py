"""FUDGE: a judge of partial replies guides each token."""
