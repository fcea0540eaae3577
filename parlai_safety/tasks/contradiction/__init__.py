"""The contradiction set that ships."""
