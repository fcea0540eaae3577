"""`parlai safety_detectors`: train the detector of evasive replies and the coherence scorer, and print their cards.

Both are trained by themselves wherever they are needed; this command shows how good they are, on real talk where
`--data` names it, and keeps the cards and the scorer's file.
"""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import job_parser, say


@register_script("safety_detectors")
class SafetyDetectors(ParlaiScript):
    """Measure the detectors of dull and of incoherent replies, and write their cards."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Where from, where to, which seed."""
        return job_parser(
            "Train the detector of evasive replies and the coherence scorer, and measure both",
            out="detectors",
            out_help="Folder for the two cards and the coherence scorer.",
        )

    def run(self) -> None:
        """Train, measure, write, print."""
        from pathlib import Path

        from parlai_safety.evaluation.coherence import coherence_scorer
        from parlai_safety.evaluation.detector_cards import card_text
        from parlai_safety.evaluation.evasive import full_card
        from parlai_safety.files import write_json

        data, out = self.opt.get("data"), Path(self.opt["out"])
        folder = Path(data) if data else None
        evasive = full_card(folder, self.opt["seed"])
        write_json(out / "evasive.json", evasive)
        say(card_text(evasive) + "\n")
        scorer = coherence_scorer(folder, out, seed=self.opt["seed"])
        write_json(out / "coherence.json", scorer.card)
        say(card_text(scorer.card))
        say(f"\nThe cards and the scorer: {out}")
