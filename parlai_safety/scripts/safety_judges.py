"""`parlai safety_judges`: train two judges, one to label and one to grade, and print how good they are."""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import job_parser, say


@register_script("safety_judges")
class SafetyJudges(ParlaiScript):
    """Train two judges on disjoint halves of labelled talk, one to label and one to grade."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Where from, where to, which seed, which kind of judge."""
        from parlai_safety.judges.recipe import KINDS

        parser = job_parser(
            "Train two judges on disjoint halves: one labels, one grades",
            out="judges",
            out_help="Folder for the judges and their cards.",
        )
        parser.add_argument(
            "--kind",
            type=str,
            default="linear",
            choices=KINDS,
            help="linear, in seconds; or turns, which read whole conversations and take very much longer to train.",
        )
        return parser

    def run(self) -> None:
        """Train, write, print."""
        import time
        from pathlib import Path

        from parlai_safety.judges.recipe import train_two_judges
        from parlai_safety.loops.sources import source_of

        start = time.monotonic()
        data, seed, out, kind = self.opt.get("data"), self.opt["seed"], Path(self.opt["out"]), self.opt["kind"]
        out.mkdir(parents=True, exist_ok=True)
        source = source_of(Path(data) if data else None)
        examples = source.judge_examples(seed)
        two = train_two_judges(examples, seed=seed, folder=out, kind=kind, data=source.name, files=source.hashes)
        say(f"Two judges from disjoint halves of {source.name}, seed {seed}, {time.monotonic() - start:.0f} s.")
        say("Each is measured on the half that the other learned from:\n")
        for path, quality in ((two.labeller_path, two.labeller), (two.grader_path, two.grader)):
            flagged = quality.ordinary_false_positive_rate
            say(
                f"  {kind}:{path}  n {quality.n}  AUC {quality.auc:.3f}  sensitivity {quality.sensitivity:.3f}  "
                f"specificity {quality.specificity:.3f}  threshold {quality.threshold:.3f}  "
                f"ordinary talk flagged {'n/a' if flagged is None else f'{100 * flagged:.1f} %'}"
            )
        say(f"\n  agreement of the two: Spearman {two.agreement.spearman:.3f}, kappa {two.agreement.kappa:.3f}")
