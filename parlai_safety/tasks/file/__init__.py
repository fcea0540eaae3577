"""Replies in a file of the user's."""
