"""Word blocking: no listed word is ever completed."""
