"""`parlai safety_methods`: every method of a recipe at one budget, in one table."""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import job_parser, run_job


@register_script("safety_methods")
class SafetyMethods(ParlaiScript):
    """Train every method of a recipe at one budget, judge them independently, and write a report."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Where from, where to, with which recipe and seed."""
        parser = job_parser("Compare methods at one budget", out="runs/methods", recipe="cringe/methods")
        return parser

    def run(self) -> None:
        """Run the job; at Ctrl-C say how to go on, and exit with 130."""
        from parlai_safety.loops.methods import run_methods

        run_job(self.opt, run_methods)
