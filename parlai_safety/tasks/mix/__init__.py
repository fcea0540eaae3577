"""Judged utterances of helpers and trolls."""
