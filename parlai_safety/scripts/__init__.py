"""Commands, used as `parlai safety_<verb>`: options in, one call, nothing else."""
