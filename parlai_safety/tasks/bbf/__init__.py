"""Build it Break it Fix it."""
