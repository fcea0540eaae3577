"""Teachers, used as `-t safety:<name>[:<view>]`."""
