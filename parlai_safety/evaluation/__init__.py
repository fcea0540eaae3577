"""Evaluation: rates with intervals, text metrics and reports.

The modules here take replies and verdicts that already exist. They know neither ParlAI nor torch, so a report can be
made, or made again, on a machine that has neither. Generating and judging replies happens elsewhere.
"""
