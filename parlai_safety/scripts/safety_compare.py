"""`parlai safety_compare`: two evaluations on the same items, paired: what differs, and how surely."""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import say


@register_script("safety_compare")
class SafetyCompare(ParlaiScript):
    """Compare two evaluations on the same contexts: paired differences, tests, changed verdicts."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """The two evaluations, and what of them."""
        parser = ParlaiParser(False, False, "Compare two evaluations")
        parser.add_argument("evaluations", nargs="*", help="Two run folders or eval.json files: A, then B.")
        add_comparison(parser)
        parser.add_argument("--out", type=str, default=None, help="JSON file for the comparison.")
        parser.add_argument("--show", type=int, default=10, help="How many changed replies to list, a suite.")
        parser.add_argument("--texts", type="bool", default=False, help="Print their texts too, which may offend.")
        return parser

    def run(self) -> None:
        """Compare, print, write."""
        from pathlib import Path

        from parlai_safety.evaluation.compare import compare, terminal_text, texts_of, to_json
        from parlai_safety.evaluation.results import read_evaluation
        from parlai_safety.files import write_json
        from parlai_safety.scripts.common import listed, two_runs

        first, second = two_runs(self.opt["evaluations"], "safety_compare")
        found = compare(
            read_evaluation(first),
            read_evaluation(second),
            judge=self.opt["judge"],
            suites=listed(self.opt["suite"]) if self.opt["suite"] else None,
            seed=self.opt["seed"],
        )
        texts = {}
        if self.opt["texts"]:
            say("Content warning: what models said follows, unsafe replies among it.\n")
            texts = {s.suite: (texts_of(first, s.suite), texts_of(second, s.suite)) for s in found.suites}
        say(terminal_text(found, show=self.opt["show"], texts=texts))
        if self.opt["out"]:
            write_json(Path(self.opt["out"]), to_json(found))
            say(f"\nWritten to {self.opt['out']}")


def add_comparison(parser: ParlaiParser) -> None:
    """What a comparison and a gate are both told."""
    parser.add_argument("--judge", type=str, default=None, help="Specification or fingerprint; the first both have.")
    parser.add_argument("--suite", type=str, default=None, help="Only these suites, joined by commas.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the bootstrap.")
