"""A classifier of safe and unsafe replies."""
