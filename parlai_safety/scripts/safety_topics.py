"""`parlai safety_topics --out topics`: train a classifier of sensitive topics and print how good it is.

Without `--data` it learns from the sentences that ship; with a folder of real data, from its sentences and its ordinary
talk. What it makes is a judge, `topics:FILE`, that fires where a bot should rather change the subject.
"""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import job_parser, say


@register_script("safety_topics")
class SafetyTopics(ParlaiScript):
    """Train a classifier of sensitive topics, and write it with its card: F1 a topic, false alarms."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Where from, where to, how many false alarms."""
        parser = job_parser(
            "Train a classifier of sensitive topics, by which a guard changes the subject",
            out="topics",
            out_help="Folder, which receives topics.npz and its card; or a file that ends in .npz.",
        )
        parser.add_argument(
            "--false-alarms", type=float, default=0.05, help="Share of ordinary talk that may fire, in [0, 1)."
        )
        parser.add_argument("--markdown", type="bool", default=False, help="Print Markdown.")
        return parser

    def run(self) -> None:
        """Train, write, print."""
        import time
        from pathlib import Path

        from parlai_safety.judges.card import beside, write_card
        from parlai_safety.judges.card_table import card_text
        from parlai_safety.judges.topic_training import make_topic_judge

        start, out = time.monotonic(), Path(self.opt["out"])
        if out.suffix != ".npz":
            out = out / "topics.npz"
        made = make_topic_judge(self.opt["data"], out, seed=self.opt["seed"], false_alarms=self.opt["false_alarms"])
        write_card(made.card, beside(out))
        say(card_text(made.card, markdown=self.opt["markdown"]))
        say(f"\nThe judge: {made.judge.spec}, the card: {beside(out)}, {time.monotonic() - start:.0f} s")
