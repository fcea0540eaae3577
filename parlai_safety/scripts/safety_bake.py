"""`parlai safety_bake`: write a task's data with safe replies in the place of unsafe ones, and to unsafe turns.

The kinds safe, nonsequitur and recovery need no model; contextual replies are written by the model of -mf or -m.
"""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import say

OURS = (
    "judge", "out", "judge_timeout", "judge_cache", "bake_target", "bake_rule", "bake_ratio", "bake_unscored",
    "bake_seed", "bake_samples", "bake_copies", "bake_fallback", "task", "batchsize", "datatype", "loglevel",
)  # fmt: skip


@register_script("safety_bake")
class SafetyBake(ParlaiScript):
    """Answer the unsafe turns of a task's data safely, and write the data as a file."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Which data, who judges, what is replaced by what, where to."""
        from parlai_safety.loops.bake import TeacherOptions
        from parlai_safety.mutators.bake import BakeOptions
        from parlai_safety.options import add_options

        parser = ParlaiParser(True, True, "Write baked data: unsafe turns answered by safe replies")
        parser.set_defaults(batchsize=64, datatype="train")
        add = parser.add_argument_group("Baked data: from what, and where to").add_argument
        add("--judge", type=str, default=None, help="Judge that says what is unsafe; parts may be joined by +.")
        add("--out", type=str, default=None, help="Run folder; a started run goes on there.")
        add("--judge-timeout", type=float, default=600.0, help="Seconds that the judge may take for 256 turns.")
        add("--judge-cache", type=str, default=None, help="File of verdicts to reuse, for slow or remote judges.")
        add_options(parser, BakeOptions, "Baked data: what is replaced, and by what")
        add_options(parser, TeacherOptions, "Baked data: contextual replies of a teacher model (-mf or -m)")
        return parser

    def run(self) -> None:
        """Judge, replace, write; print counts alone. At Ctrl-C say how to go on, and exit with 130."""
        import sys
        from pathlib import Path

        from parlai_safety.evaluation.generate import agent_from
        from parlai_safety.loops.bake import BAKED, TeacherOptions, bake_exchanges
        from parlai_safety.loops.exchanges import task_exchanges
        from parlai_safety.loops.training import quiet
        from parlai_safety.mutators.bake import CONTEXTUAL, BakeOptions, targets_of
        from parlai_safety.options import options_from
        from parlai_safety.scripts.common import identity, judges_of, required

        opt = self.opt
        spec = required(opt, "judge", "who says what is unsafe", "--judge linear:judges/labeller.npz")
        out = Path(required(opt, "out", "where the data go", "--out runs/baked"))
        required(opt, "task", "which data are read", "-t safety:tiny:plain")
        options, teacher = options_from(opt, BakeOptions), options_from(opt, TeacherOptions)
        contextual = CONTEXTUAL in targets_of(options.bake_target)
        with quiet():
            about = identity(opt, OURS) if contextual else {}
            [judge] = judges_of([spec], timeout=opt["judge_timeout"], cache=opt.get("judge_cache"))
            try:
                summary = bake_exchanges(
                    list(task_exchanges(opt)),
                    judge=judge,
                    folder=out,
                    options=options,
                    teacher=teacher,
                    agent=agent_from(opt) if contextual else None,
                    batch_size=opt["batchsize"],
                    name=about.get("name"),
                    about=about,
                )
            except KeyboardInterrupt:
                say("\nStopped. Every reply and verdict is kept: type the same command again to go on from here.")
                sys.exit(130)
        for group in ("rows", "because", "kinds", "contextual"):
            counts = getattr(summary, group)
            if any(counts.values()):
                say(f"{group}: " + ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items()))
        say(f"share flagged: {summary.share:.4f} (--bake-share of the mutator safety_bake)")
        say(f"\nBaked data: {out / BAKED}   Warning: contexts, and untouched replies, may hold unsafe text.")
