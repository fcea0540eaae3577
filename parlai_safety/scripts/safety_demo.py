"""`parlai safety_demo`: the main job, from nothing to a report (what `make demo` calls)."""

from __future__ import annotations

import shlex
import sys

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import job_parser, say


@register_script("safety_demo")
class SafetyDemo(ParlaiScript):
    """Train a base model, CRINGE and one CRINGE round, judge them independently, and write a report."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Where from, where to, with which recipe and seed."""
        parser = job_parser(
            "Train, judge and report: base model, CRINGE, CRINGE iterated",
            out="runs/demo",
            out_help="Run folder; a started run goes on there.",
        )
        parser.add_argument("--recipe", type=str, default="cringe/demo", help="A recipe file, or a name in projects/.")
        return parser

    def run(self) -> None:
        """Run the job; at Ctrl-C say how to go on, and exit with 130."""
        from pathlib import Path

        from parlai_safety import resources
        from parlai_safety.loops.demo import run_demo, summary

        out = Path(self.opt["out"])
        data = self.opt.get("data")
        try:
            report = run_demo(
                recipe_path=resources.recipe(self.opt["recipe"]),
                out=out,
                seed=self.opt["seed"],
                data=Path(data) if data else None,
                command="parlai " + shlex.join(sys.argv[1:]),
            )
        except KeyboardInterrupt:
            say("\nStopped. What is done is kept: type the same command again to go on from here.")
            sys.exit(130)
        say(summary(report, out))
