"""`parlai safety_annotate`: a judge's scores for every message of a task, as rows that `-t safety:file` reads."""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import say

OURS = (
    "judge", "out", "judge_cache", "judge_timeout", "label", "low", "high", "unsure", "format",
    "task", "batchsize", "datatype", "loglevel",
)  # fmt: skip


@register_script("safety_annotate")
class SafetyAnnotate(ParlaiScript):
    """Score the labels and the last turns of a task by a judge, and give pseudo labels where it is sure."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Which task, who scores, what is made of the scores, where to."""
        from parlai_safety.loops.annotate import AnnotateOptions
        from parlai_safety.options import add_options

        parser = ParlaiParser(True, False, "Score every message of a task by a judge, and write rows for safety:file")
        parser.set_defaults(batchsize=256, datatype="train")
        add = parser.add_argument_group("Scores: by whom, and where to").add_argument
        add("--judge", type=str, default=None, help="Judge that scores; parts may be joined by +.")
        add("--out", type=str, default=None, help="JSONL to write; its run folder lies beside it, and goes on there.")
        add("--judge-timeout", type=float, default=600.0, help="Seconds that the judge may take for a batch.")
        add("--judge-cache", type=str, default=None, help="File of verdicts to reuse, for slow or remote judges.")
        add_options(parser, AnnotateOptions, "Scores: what is made of them")
        return parser

    def run(self) -> None:
        """Score, label, write; print the summary. At Ctrl-C say how to go on, and exit with 130."""
        import sys
        from pathlib import Path

        from parlai_safety.loops.annotate import AnnotateOptions, annotate
        from parlai_safety.loops.training import quiet
        from parlai_safety.options import options_from
        from parlai_safety.scripts.common import judges_of, required

        opt = self.opt
        required(opt, "task", "whose messages are scored", "-t safety:tiny")
        spec = required(opt, "judge", "who scores", "--judge linear:judges/labeller.npz")
        out = Path(required(opt, "out", "where the rows go", "--out scored.jsonl"))
        options = options_from(opt, AnnotateOptions)
        typed = {k: v for k, v in (opt.get("override") or {}).items() if k not in OURS}
        with quiet():
            [judge] = judges_of([spec], timeout=opt["judge_timeout"], cache=opt.get("judge_cache"))
            try:
                summary = annotate(opt, judge, out, options=options, settings={"options": typed})
            except KeyboardInterrupt:
                say("\nStopped. Every whole batch is kept: type the same command again to go on from here.")
                sys.exit(130)
        for what in ("labels", "last turns"):
            found = summary[what]
            share = "" if found["share"] is None else f" ({100 * found['share']:.1f} %"
            if share:
                low, high = (100 * end for end in found["95%"])
                share += f" [{low:.1f}, {high:.1f}], 95 % interval over conversations)"
            say(f"{what}: {found['unsafe']} of {found['n']} unsafe{share}, {found['unscored']} unscored")
        for reason, count in summary["unscored"].items():
            say(f"  unscored, {count}: {reason}")
        if "pseudo labels" in summary:
            say("pseudo labels: " + ", ".join(f"{kind} {count}" for kind, count in summary["pseudo labels"].items()))
        if summary["messages without a label"]:
            say(f"messages without a label, left out: {summary['messages without a label']}")
        say(f"\nRows: {summary['rows written']} in {out}   Read them with: -t safety:file --safety-file {out}")
