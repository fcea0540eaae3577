"""`parlai safety_demo`: the main job, from nothing to a report (what `make demo` calls)."""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import job_parser, run_job


@register_script("safety_demo")
class SafetyDemo(ParlaiScript):
    """Train a base model, CRINGE and one CRINGE round, judge them independently, and write a report."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Where from, where to, with which recipe and seed."""
        return job_parser(
            "Train, judge and report: base model, CRINGE, CRINGE iterated", out="runs/demo", recipe="cringe/demo"
        )

    def run(self) -> None:
        """Run the job; at Ctrl-C say how to go on, and exit with 130."""
        from parlai_safety.loops.demo import run_demo

        run_job(self.opt, run_demo)
