"""`parlai safety_human export|read|acute RUN…`: replies for people to label, their labels, and pairs for ACUTE-Eval.

`export` writes replies without a sign of who gave them, and a key that annotators must not see; `read` takes their
labels back, on the scale ok, not_ok_minority, not_ok_some, not_ok_most, and `safety_report` then shows them; `acute`
pairs the conversations of two systems for ParlAI's crowdsourcing task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import required, say

VERBS = ("export", "read", "acute")


@register_script("safety_human")
class SafetyHuman(ParlaiScript):
    """Export replies for people to judge, read their labels, or pair conversations for ACUTE-Eval."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """What to do, with which evaluations."""
        parser = ParlaiParser(False, False, "What people say of the replies of an evaluation")
        # No choices here: ParlAI reads the words once more with the command's own name in front of them.
        parser.add_argument("words", nargs="*", help=f"One of {', '.join(VERBS)}, and then run folders of safety_eval.")
        parser.add_argument("--out", type=str, default=None, help="File to write: .csv or .jsonl; for acute .jsonl.")
        parser.add_argument("--suite", type=str, default=None, help="Suites, joined by commas; all if absent.")
        parser.add_argument("--count", type=int, default=None, help="At most so many items a suite, evenly spread.")
        parser.add_argument("--names", type=str, default=None, help="Names of the systems, joined by commas.")
        parser.add_argument("--labels", type=str, default=None, help="read: files with labels, joined by commas.")
        parser.add_argument("--key", type=str, default=None, help="read: the key that export wrote.")
        parser.add_argument("--seed", type=int, default=1, help="Of the order, and of the blind ids.")
        return parser

    def run(self) -> None:
        """Export, read or pair."""
        from parlai_safety.errors import SafetyError, did_you_mean
        from parlai_safety.evaluation.report_runs import read_runs
        from parlai_safety.scripts.common import listed

        verb, *paths = self.opt["words"] or [""]
        actions = dict(zip(VERBS, (_export, _read, _acute), strict=True))
        if verb not in actions or not paths:
            raise SafetyError(
                f"safety_human got the words {' '.join([verb, *paths]) or 'none'!r}",
                f"The first says what to do ({', '.join(VERBS)}), and the others are run folders of safety_eval",
                did_you_mean(verb, VERBS, "Type for example parlai safety_human export runs/base --out replies.csv"),
            )
        names = self.opt.get("names")
        actions[verb](self.opt, read_runs(paths, listed(names) if names else None))


def _export(opt: Mapping[str, Any], runs: list[Any]) -> None:
    from parlai_safety.evaluation.human import LEVELS, export_replies, write_export
    from parlai_safety.scripts.common import listed

    out = required(opt, "out", "where the rows to label go", "--out replies.csv")
    suites = listed(opt["suite"]) if opt.get("suite") else None
    export = export_replies(runs, suites=suites, count=opt["count"], seed=opt["seed"])
    key = write_export(export, out)
    say(f"{len(export.rows)} replies to label: {out}   The key, which no annotator may see: {key}")
    if export.without_reply:
        say(f"{export.without_reply} places have no reply, and are not among them.")
    say("Fill in annotator (a pseudonym) and level: " + "; ".join(f"{name} ({text})" for name, text in LEVELS.items()))
    say("Replies and contexts may offend: say so before anybody opens the file, and let people stop at any time.")


def _read(opt: Mapping[str, Any], runs: list[Any]) -> None:
    from tabulate import tabulate

    from parlai_safety.evaluation.human import FILE, ORDER, write_people
    from parlai_safety.evaluation.page import fraction, percent
    from parlai_safety.scripts.common import listed

    labels = listed(required(opt, "labels", "which files hold people's labels", "--labels replies.csv"))
    key = required(opt, "key", "which reply a label is of", "--key replies.csv.key.jsonl")
    rows = []
    for run in runs:
        for suite, found in write_people(run, labels, key)["suites"].items():
            ok = found["ok"]
            ends = "" if ok["low"] is None else f" [{100 * ok['low']:.1f}, {100 * ok['high']:.1f}]"
            levels = [found["by_item"][name] for name in ORDER]
            rows.append(
                [run.evaluation.name, suite, percent(ok["value"]) + ends, *levels, found["labels"], found["annotators"],
                 fraction(found["alpha"])]
            )  # fmt: skip
    headers = ("system", "suite", "ok [95 %]", *ORDER, "labels", "annotators", "alpha")
    say(tabulate(rows, headers, tablefmt="simple", disable_numparse=True))
    say(f"\nWritten as {FILE} into each run folder; parlai safety_report shows it.")


def _acute(opt: Mapping[str, Any], runs: list[Any]) -> None:
    from parlai_safety.errors import SafetyError
    from parlai_safety.evaluation.human import acute_pairs
    from parlai_safety.files import write_jsonl

    out = required(opt, "out", "where the pairs go", "--out pairs.jsonl")
    if len(runs) != 2:
        raise SafetyError(
            f"ACUTE-Eval was asked for with {len(runs)} evaluations",
            "A pair holds a conversation of each of two systems",
            "Type for example parlai safety_human acute runs/base runs/new --suite multiturn --out pairs.jsonl",
        )
    pairs = acute_pairs(*runs, suite=opt.get("suite") or "multiturn", count=opt["count"], seed=opt["seed"])
    write_jsonl(out, pairs)
    say(f"{len(pairs)} pairs for mephisto.blueprint.pairings_filepath: {out}")
    say("Add pairs of your own with is_onboarding true: by these the task tells who reads with care.")
