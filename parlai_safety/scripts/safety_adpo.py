"""`parlai safety_adpo`: adversarial DPO from the toxic control token to one table (its loss is a reconstruction)."""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import job_parser, run_job


@register_script("safety_adpo")
class SafetyAdpo(ParlaiScript):
    """Fine-tune with the toxic control token, make triples, train ADPO and its baselines, and write a report."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Where from, where to, with which recipe and seed."""
        parser = job_parser("Adversarial DPO and its baselines at one budget", out="runs/adpo", recipe="adpo/adpo")
        return parser

    def run(self) -> None:
        """Run the job; at Ctrl-C say how to go on, and exit with 130."""
        from parlai_safety.loops.preferences import run_preferences

        run_job(self.opt, run_preferences)
