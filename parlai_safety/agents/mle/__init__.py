"""Maximum likelihood on the replies to follow."""
