"""A sequence classifier of transformers, trained inside ParlAI."""
