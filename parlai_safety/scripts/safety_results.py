"""`parlai safety_results RUN…`: one Markdown table over several runs of one job, with means over seeds."""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import say


@register_script("safety_results")
class SafetyResults(ParlaiScript):
    """Tabulate the reports of several runs, with the mean over seeds and its interval."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """The run folders."""
        parser = ParlaiParser(False, False, "Tabulate several runs of one job, with means over their seeds")
        parser.add_argument("--runs", type=str, nargs="+", required=True, help="Run folders with a report.json each.")
        parser.add_argument("--means", type="bool", default=False, help="Show the means over seeds alone.")
        parser.add_argument(
            "--against", type=str, default=None, help="A system; adds each one's difference to it within a seed."
        )
        return parser

    def run(self) -> None:
        """Print the table."""
        from parlai_safety.evaluation.seeds import results_table

        say(results_table(self.opt["runs"], means=self.opt["means"], against=self.opt.get("against")))
