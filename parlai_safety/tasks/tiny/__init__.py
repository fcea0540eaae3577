"""The corpus that ships."""
