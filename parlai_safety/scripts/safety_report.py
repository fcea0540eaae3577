"""`parlai safety_report RUN…`: one page, with JSON and Markdown beside it, from evaluations that were made before."""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import say


@register_script("safety_report")
class SafetyReport(ParlaiScript):
    """Write one self-contained page about one or more evaluations, with JSON and Markdown beside it."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Which evaluations, where to, and what to call the systems."""
        parser = ParlaiParser(False, False, "One page about one or more evaluations, readable on a phone and in print")
        parser.add_argument("runs", type=str, nargs="+", help="Run folders of safety_eval, or their eval.json.")
        parser.add_argument(
            "--out", type=str, default="report.html", help="The page; .json and .md of the same name stand beside it."
        )
        parser.add_argument(
            "--names",
            type=str,
            default=None,
            help="Names of the systems, separated by commas, in the order of the runs.",
        )
        parser.add_argument("--title", type=str, default=None, help="Title of the page.")
        return parser

    def run(self) -> None:
        """Read, write, say where."""
        from parlai_safety.evaluation.report_runs import read_runs, write_runs_report

        names = self.opt.get("names")
        runs = read_runs(self.opt["runs"], names.split(",") if names else None)
        files = write_runs_report(runs, self.opt["out"], self.opt.get("title"))
        say(f"The report, with replies to read behind a warning: {files.html}")
        say(f"The same as JSON and Markdown: {files.json}, {files.markdown}")
