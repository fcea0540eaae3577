"""`parlai safety_triples`: chosen, rejected and toxic replies of a model with the control token, sorted by a judge."""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import say

OURS = (
    "judge", "out", "contexts", "mix_pairs", "max_contexts", "seed", "judge_timeout", "judge_cache",
    "samples", "toxic_samples", "toxic_check", "toxic_required", "margin", "pick", "copies",
    "task", "batchsize", "datatype", "loglevel",
)  # fmt: skip


@register_script("safety_triples")
class SafetyTriples(ParlaiScript):
    """Draw replies to unseen contexts, have a judge sort them, and write triples for adversarial DPO."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Whose replies, to what, who sorts, where to."""
        from parlai_safety.loops.triples import TripleOptions
        from parlai_safety.options import add_options

        parser = ParlaiParser(True, True, "Make chosen, rejected and toxic replies from a model with the control token")
        parser.set_defaults(batchsize=64, datatype="valid")
        add = parser.add_argument_group("Triples: from what, and where to").add_argument
        add("--judge", type=str, default=None, help="Judge that sorts the replies; parts may be joined by +.")
        add("--out", type=str, default=None, help="Run folder; a started run goes on there.")
        add("--contexts", type=str, default=None, help="JSONL of rows with context, beside or in place of -t TASK.")
        add("--mix-pairs", type="bool", default=False, help="Rows that bring a chosen and a rejected reply keep them.")
        add("--max-contexts", type=int, default=0, help="At most so many contexts, evenly spread; 0 for all.")
        add("--seed", type=int, default=1, help="Seed of the replies, and of which of them are taken.")
        add("--judge-timeout", type=float, default=600.0, help="Seconds that the judge may take for 256 replies.")
        add("--judge-cache", type=str, default=None, help="File of verdicts to reuse, for slow or remote judges.")
        add_options(parser, TripleOptions, "Triples: how many replies, and which of them")
        return parser

    def run(self) -> None:
        """Draw, judge, sort, write; print counts alone. At Ctrl-C say how to go on, and exit with 130."""
        import sys
        from dataclasses import asdict
        from pathlib import Path

        from parlai_safety.errors import SafetyError
        from parlai_safety.evaluation.generate import agent_from
        from parlai_safety.loops.contexts import asked_of, file_rows, task_rows
        from parlai_safety.loops.training import quiet
        from parlai_safety.loops.triples import TRIPLES, TripleOptions, make_triples
        from parlai_safety.options import options_from
        from parlai_safety.scripts.common import identity, judges_of, required

        opt = self.opt
        spec = required(opt, "judge", "who sorts the replies", "--judge linear:judges/labeller.npz")
        out = Path(required(opt, "out", "where the triples go", "--out runs/triples"))
        options = options_from(opt, TripleOptions)
        file, task = opt.get("contexts"), opt.get("task")
        if not file and not task:
            raise SafetyError(
                "The command came without --contexts and without -t",
                "Replies are drawn to contexts, which had better be none that the model was trained on",
                "Add for example --contexts unseen.jsonl, or -t safety:labels --datatype valid",
            )
        if opt["max_contexts"] < 0:
            raise SafetyError(
                f"--max-contexts got {opt['max_contexts']}", "It is a count", "Give 1 or more, or 0 for all contexts"
            )
        with quiet():
            name = identity(opt, OURS)["name"]
            [judge] = judges_of([spec], timeout=opt["judge_timeout"], cache=opt.get("judge_cache"))
            rows = [*(file_rows(Path(file)) if file else ()), *(task_rows(opt) if task else ())]
            asked = asked_of(rows, mix_pairs=opt["mix_pairs"], limit=opt["max_contexts"] or None)
            try:
                summary = make_triples(
                    agent_from(opt),
                    judge,
                    asked.contexts,
                    out,
                    seed=opt["seed"],
                    batch_size=opt["batchsize"],
                    human=asked.human,
                    name=name,
                    **asdict(options),
                )
            except KeyboardInterrupt:
                say("\nStopped. Every reply and verdict is kept: type the same command again to go on from here.")
                sys.exit(130)
        for group, counts in summary._asdict().items():
            say(f"{group}: " + ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items()))
        say(f"\nTriples: {out / TRIPLES}   Warning: that folder holds unsafe text, written by the model to be avoided.")
