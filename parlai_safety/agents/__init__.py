"""Agents, used as `-m safety:<name>[/<variant>]`: each gathers tensors, calls a loss and records metrics."""
