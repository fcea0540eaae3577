"""`parlai safety_filter`: write a task's data without unsafe exchanges, or without authors who often write such.

A report says what was dropped. By the rule author, the table of authors is written too, which the mutator
safety_filter_authors reads.
"""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import say


@register_script("safety_filter")
class SafetyFilter(ParlaiScript):
    """Drop the unsafe exchanges of a task's data, and write what is left with a report."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Which data, who judges, what is dropped, where to."""
        from parlai_safety.mutators.filters import AuthorRule, UtteranceOptions
        from parlai_safety.options import add_options

        parser = ParlaiParser(True, False, "Write filtered data, and a report of what was dropped")
        parser.set_defaults(datatype="train")
        add = parser.add_argument_group("Filter: from what, and where to").add_argument
        add("--judge", type=str, default=None, help="Judge that says what is unsafe; parts may be joined by +.")
        add("--out", type=str, default=None, help="Run folder; a started run goes on there.")
        add("--rule", type=str, default="utterance", help="Drop by the turns themselves (utterance) or by author.")
        add("--examples", type=int, default=0, help="Dropped exchanges that the page shows behind a warning.")
        add("--judge-timeout", type=float, default=600.0, help="Seconds that the judge may take for 256 turns.")
        add("--judge-cache", type=str, default=None, help="File of verdicts to reuse, for slow or remote judges.")
        add_options(parser, UtteranceOptions, "Filter: by the turns themselves")
        add_options(parser, AuthorRule, "Filter: by author")
        return parser

    def run(self) -> None:
        """Judge, drop, write; print counts alone. At Ctrl-C say how to go on, and exit with 130."""
        import sys
        from pathlib import Path

        from parlai_safety.loops.exchanges import task_exchanges
        from parlai_safety.loops.filters import KEPT, PAGE, check_rule, filter_exchanges
        from parlai_safety.loops.training import quiet
        from parlai_safety.mutators.filters import AuthorRule, UtteranceOptions
        from parlai_safety.options import options_from
        from parlai_safety.scripts.common import judges_of, required

        opt = self.opt
        spec = required(opt, "judge", "who says what is unsafe", "--judge linear:judges/labeller.npz")
        out = Path(required(opt, "out", "where the data go", "--out runs/filtered"))
        task = required(opt, "task", "which data are read", "-t safety:tiny:plain")
        rule = check_rule(opt["rule"])
        context = options_from(opt, UtteranceOptions).filter_context
        authors = options_from(opt, AuthorRule)
        with quiet():
            [judge] = judges_of([spec], timeout=opt["judge_timeout"], cache=opt.get("judge_cache"))
            try:
                report = filter_exchanges(
                    list(task_exchanges(opt)),
                    judge=judge,
                    folder=out,
                    rule=rule,
                    context=context,
                    authors=authors,
                    name=task,
                    examples=opt["examples"],
                )
            except KeyboardInterrupt:
                say("\nStopped. Every verdict is kept: type the same command again to go on from here.")
                sys.exit(130)
        for group in ("rows", "authors"):
            counts = getattr(report, group)
            if counts:
                say(f"{group}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
        say(f"\nFiltered data: {out / KEPT}   Report: {out / PAGE}")
