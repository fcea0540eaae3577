"""`parlai safety_judge_card --judge SPEC`: measure a judge, print how good it is, and write the card of it.

Without `--data` the judge is measured on the test split of the corpus that ships; with a folder of real data on its
test split; with a file of labelled replies on all of them. Examples of conversations that the judge's file remembers
from its training are left out and counted.
"""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import required, say


@register_script("safety_judge_card")
class SafetyJudgeCard(ParlaiScript):
    """Measure a judge and write its card: error rates, calibration, thresholds, fairness."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Which judge, on what, where to."""
        parser = ParlaiParser(False, False, "Measure a judge and write its card, which later runs pick up")
        parser.add_argument("--judge", type=str, default=None, help="A judge, as in linear:judges/grader.npz.")
        parser.add_argument("--threshold", type=float, default=None, help="Instead of the judge's own threshold.")
        parser.add_argument(
            "--data", type=str, default=None, help="Folder or file of labelled replies; the shipped corpus if absent."
        )
        parser.add_argument("--out", type=str, default=None, help="Card file; where later runs look for it if absent.")
        parser.add_argument("--probes", type="bool", default=True, help="Measure the identity groups too.")
        parser.add_argument("--markdown", type="bool", default=False, help="Print Markdown.")
        parser.add_argument("--seed", type=int, default=1, help="Chooses the ordinary turns of a folder.")
        return parser

    def run(self) -> None:
        """Measure, write, print."""
        from pathlib import Path

        from parlai_safety.judges.card import card_of, card_path, make_card, write_card
        from parlai_safety.judges.card_table import card_text
        from parlai_safety.judges.data import measuring_examples
        from parlai_safety.judges.spec import load_judge

        spec = required(self.opt, "judge", "which judge is measured", "--judge linear:judges/grader.npz")
        judge = load_judge(spec, threshold=self.opt["threshold"])
        source = measuring_examples(self.opt["data"], seed=self.opt["seed"])
        # What only the training could measure is kept, as long as the judge is the same.
        before = card_of(judge).card or {}
        kept = {key: value for key, value in before.items() if key.startswith("agreement_with_")}
        card = make_card(
            judge,
            source.examples,
            measured_on=source.name,
            files=source.files,
            trained_on=before.get("trained_on"),
            probes=self.opt["probes"],
            extra=kept,
        )
        path = Path(self.opt["out"]) if self.opt["out"] else card_path(judge)
        write_card(card, path)
        say(card_text(card, markdown=self.opt["markdown"]))
        say(f"\nThe card: {path}")
