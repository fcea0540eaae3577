"""The second door: the plugin's losses in other people's training code. Optional dependencies, imported late."""
