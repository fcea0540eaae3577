"""`parlai safety_results RUN…`: one Markdown table over several runs of one job, with means over seeds."""

from __future__ import annotations

from pathlib import Path

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
        parser.add_argument(
            "--learning", type="bool", default=False, help="Show instead how preference losses learned: drift, margins."
        )
        parser.add_argument(
            "--plot", type=str, default=None, help="Draw the frontier too: a file that ends in .png or .svg."
        )
        return parser

    def run(self) -> None:
        """Print the table; draw the plot."""
        from parlai_safety.evaluation.frontier import draw_frontier
        from parlai_safety.evaluation.seeds import learning_table, results_table

        if self.opt.get("plot"):
            draw_frontier(self.opt["runs"], Path(self.opt["plot"]))

        if self.opt["learning"]:
            say(learning_table(self.opt["runs"]))
            return
        say(results_table(self.opt["runs"], means=self.opt["means"], against=self.opt.get("against")))
