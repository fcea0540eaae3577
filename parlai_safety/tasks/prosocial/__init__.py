"""ProsocialDialog."""
