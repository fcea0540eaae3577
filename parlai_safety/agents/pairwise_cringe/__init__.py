"""Pairwise CRINGE: CRINGE on pairs of replies, behind a soft margin."""
