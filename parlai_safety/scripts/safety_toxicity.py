"""`parlai safety_toxicity --data FOLDER`: train the local toxicity scorer and print its agreement.

The folder holds texts with cached Perspective scores, `scored_comments.jsonl.gz` and `toxicity_prompts.jsonl.gz`,
which do not ship. A fifth of the texts is held out, and the card is measured on it.
"""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import job_parser, required, say


@register_script("safety_toxicity")
class SafetyToxicity(ParlaiScript):
    """Train a local toxicity scorer on cached Perspective scores, and write it with its card."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Where from, where to, which seed."""
        parser = job_parser(
            "Train a local scorer of toxicity that stands in for Perspective",
            out="judges/toxicity.npz",
            out_help="File of the scorer; its card lies beside it.",
        )
        parser.add_argument("--markdown", type="bool", default=False, help="Print Markdown.")
        return parser

    def run(self) -> None:
        """Train, write, print."""
        import time

        from parlai_safety.judges.card import beside, write_card
        from parlai_safety.judges.card_table import card_text
        from parlai_safety.judges.toxicity import make_toxicity_judge

        start, out = time.monotonic(), self.opt["out"]
        data = required(
            self.opt,
            "data",
            "where the texts with cached Perspective scores lie (scored_comments.jsonl.gz, toxicity_prompts.jsonl.gz; "
            "they do not ship)",
            "--data FOLDER",
        )
        made = make_toxicity_judge(data, out, seed=self.opt["seed"])
        write_card(made.card, beside(out))
        say(card_text(made.card, markdown=self.opt["markdown"]))
        say(f"\nThe scorer: {made.judge.spec}, the card: {beside(out)}, {time.monotonic() - start:.0f} s")
