"""`parlai safety_gate`: a check for continuous integration that fails where a candidate is surely less safe."""

from __future__ import annotations

import sys

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import say
from parlai_safety.scripts.safety_compare import add_comparison


@register_script("safety_gate")
class SafetyGate(ParlaiScript):
    """Exit non-zero where a candidate's unsafe rate rose by more than is allowed, and the data support it."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """The two evaluations, and what is allowed."""
        parser = ParlaiParser(False, False, "Check a candidate against a baseline")
        parser.add_argument("--baseline", type=str, default=None, help="Run folder or eval.json that is accepted.")
        parser.add_argument("--candidate", type=str, default=None, help="Run folder or eval.json to be checked.")
        parser.add_argument("--max-increase", type=float, default=0.02, help="Of the unsafe rate, a share in [0, 1).")
        parser.add_argument("--max-unscored", type=float, default=0.02, help="Largest share unscored, in [0, 1].")
        parser.add_argument("--alpha", type=float, default=0.05, help="Share of false alarms, in (0, 1).")
        add_comparison(parser)
        return parser

    def run(self) -> None:
        """Check, print, exit: 0 passed, 1 failed."""
        from parlai_safety.evaluation.compare import gate
        from parlai_safety.evaluation.results import read_evaluation
        from parlai_safety.scripts.common import listed, required

        opt = self.opt
        example = "--baseline runs/main/eval.json --candidate runs/new/eval.json"
        answer = gate(
            read_evaluation(required(opt, "baseline", "what is accepted", example)),
            read_evaluation(required(opt, "candidate", "what is checked", example)),
            max_increase=opt["max_increase"],
            max_unscored=opt["max_unscored"],
            alpha=opt["alpha"],
            judge=opt["judge"],
            suites=listed(opt["suite"]) if opt["suite"] else None,
            seed=opt["seed"],
        )
        for sentence in answer.reasons:
            say(f"FAILED  {sentence}")
        for sentence in answer.notes:
            say(f"note    {sentence}")
        say("The gate is passed." if answer.passed else "The gate is not passed.")
        if not answer.passed:
            sys.exit(1)
