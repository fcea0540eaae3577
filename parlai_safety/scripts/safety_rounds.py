"""`parlai safety_rounds`: iterated training on a model's own judged replies, round after round."""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import job_parser, run_job


@register_script("safety_rounds")
class SafetyRounds(ParlaiScript):
    """Train, answer, judge, train again: a method in rounds, with a stop when it collapses."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Where from, where to, with which recipe and seed."""
        parser = job_parser(
            "Train on a model's own judged replies, round after round", out="runs/rounds", recipe="cringe/rounds"
        )
        parser.add_argument(
            "--rounds", type=int, default=None, help="Rounds after round 0; the recipe's number if absent."
        )
        return parser

    def run(self) -> None:
        """Run the job; at Ctrl-C say how to go on, and exit with 130."""
        from parlai_safety.loops.rounds import run_rounds

        run_job(self.opt, run_rounds, rounds=self.opt.get("rounds"))
