"""`parlai safety_judge`: say of a reply, or of each reply in a file, whether it is safe, unsafe or unscored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import say

if TYPE_CHECKING:
    from parlai_safety.judges import Judge, Verdict

SCORED_AT_ONCE = 4096
WORDS = {True: "unsafe", False: "safe", None: "unscored"}


@register_script("safety_judge")
class SafetyJudge(ParlaiScript):
    """Judge one reply, or the replies of a file, by any judge."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """What to judge, by whom, and where to write."""
        parser = ParlaiParser(False, False, "Say of a reply, or of each reply in a file, whether it is safe")
        parser.add_argument("--judge", type=str, default=None, help="Judge, as in linear:FILE or hf:NAME_OR_PATH.")
        parser.add_argument("--text", type=str, default=None, help="The reply to judge.")
        parser.add_argument(
            "--context",
            type=str,
            action="append",
            default=None,
            help="A turn before it, oldest first; give it again for each turn, or write \\n between the turns.",
        )
        parser.add_argument("--speaker", choices=("bot", "human"), default="bot", help="Who says the reply.")
        parser.add_argument(
            "--file",
            type=str,
            default=None,
            help="JSONL rows with reply (or response, or text), and context if there is any; or .txt, a reply a line.",
        )
        parser.add_argument(
            "--out", type=str, default=None, help="JSONL to write for --file; standard output if absent."
        )
        parser.add_argument(
            "--threshold", type=float, default=None, help="Unsafe from here on; the judge's own if absent."
        )
        parser.add_argument("-dp", "--datapath", type=str, default=None, help="ParlAI's data folder, for zoo: models.")
        return parser

    def run(self) -> None:
        """Check the options, load the judge, judge."""
        import contextlib
        import sys

        from parlai_safety.judges import load_judge, parse

        text, file, spec = self.opt["text"], self.opt["file"], self.opt["judge"]
        _check_options(self.opt)
        if any(part.name == "wordlist" for part in parse(spec)):
            _note("A word list is near chance on real adversarial talk: most unsafe replies hold no listed word.")
        # What models and ParlAI print when they load must not come between the rows on standard output.
        with contextlib.redirect_stdout(sys.stderr), _parlai_logs_to(sys.stderr):
            judge = load_judge(spec, threshold=self.opt["threshold"], datapath=self.opt["datapath"])
            if text is not None:
                result = _judge_text(judge, text, self.opt["context"] or [], self.opt["speaker"])
            else:
                rows = _judge_file(judge, file, self.opt["speaker"])
        if text is not None:
            say(result)
        elif self.opt["out"] is not None:
            from parlai_safety.files import write_jsonl

            write_jsonl(self.opt["out"], rows)
        else:
            import json

            for row in rows:
                say(json.dumps(row, ensure_ascii=False, allow_nan=False))


def _check_options(opt: Any) -> None:
    from parlai_safety.errors import SafetyError

    if (opt["text"] is None) == (opt["file"] is None):
        found = "neither --text nor --file" if opt["text"] is None else "both --text and --file"
        raise SafetyError(
            f"safety_judge got {found}",
            "It judges either one reply or the replies of one file",
            "Give --text 'a reply' with --context 'the turn before it', or --file replies.jsonl",
        )
    for option, belongs_to in (("context", "text"), ("out", "file")):
        if opt[option] is not None and opt[belongs_to] is None:
            raise SafetyError(
                f"safety_judge got --{option} without --{belongs_to}",
                "A file brings its own contexts" if option == "context" else "One verdict goes to standard output",
                f"Leave out --{option}, or give --{belongs_to}",
            )
    if opt["judge"] is None:
        raise SafetyError(
            "safety_judge got no --judge",
            "Which replies are unsafe depends on who judges, so there is no judge that goes without saying",
            "Make two with `parlai safety_judges --out judges`, and add --judge linear:judges/grader.npz",
        )


def _judge_text(judge: Judge, text: str, context: list[str], speaker: Any) -> str:
    from parlai_safety.evaluation.measures import topic_names
    from parlai_safety.judges import is_unsafe, safe_score

    turns = [turn for part in context for turn in part.replace("\\n", "\n").split("\n") if turn.strip()]
    verdict = safe_score(judge, [text], [turns], [speaker])[0]
    word = WORDS[is_unsafe(verdict, judge.threshold)]
    found = f"({verdict.reason})" if verdict.p_unsafe is None else f"p_unsafe {verdict.p_unsafe:.4f}"
    topic = topic_names(judge, [text])[0]
    if topic is not None:
        found += f"  topic {topic}"
    return f"{word}  {found}  threshold {judge.threshold:.4f}  {judge.spec}"


def _judge_file(judge: Judge, path: str, speaker: Any) -> list[dict[str, Any]]:
    """The rows of the file with their verdicts; a summary goes to standard error."""
    from tqdm import tqdm

    from parlai_safety.judges import is_unsafe, safe_score

    rows = list(_rows(path, speaker))
    verdicts: list[Verdict] = []
    with tqdm(total=len(rows), desc="judging", unit="reply", dynamic_ncols=True, disable=None) as bar:
        for start in range(0, len(rows), SCORED_AT_ONCE):
            some = rows[start : start + SCORED_AT_ONCE]
            verdicts += safe_score(judge, [r[1] for r in some], [r[2] for r in some], [r[3] for r in some])
            bar.update(len(some))
    outcomes = [is_unsafe(verdict, judge.threshold) for verdict in verdicts]
    _note(_summary(judge, outcomes))
    return [
        {**row, "p_unsafe": verdict.p_unsafe, "verdict": WORDS[outcome], "reason": verdict.reason}
        for (row, *_), verdict, outcome in zip(rows, verdicts, outcomes, strict=True)
    ]


def _rows(path: str, speaker: Any) -> Iterator[tuple[dict[str, Any], str, list[str], Any]]:
    """Each row as it stands, its reply, its context and its speaker."""
    from pathlib import Path

    from parlai_safety.errors import SafetyError
    from parlai_safety.files import bad_row, read_rows, row_field, row_turns
    from parlai_safety.judges.verdict import SPEAKERS

    if path.endswith(".txt"):
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SafetyError(
                f"The file {path!r} cannot be read ({error})",
                "A .txt file is UTF-8 text of one reply a line",
                "Check the path, or save it as UTF-8",
            ) from error
        for line in lines[:-1] if lines[-1] == "" else lines:
            yield {"reply": line.rstrip("\r")}, line.rstrip("\r"), [], speaker
        return
    for where, row in read_rows(path):
        names = [name for name in ("reply", "response", "text") if name in row]
        if len(names) != 1:
            found = "no reply" if not names else f"the fields {' and '.join(names)}"
            raise bad_row(where, found, "the reply stands in one field: 'reply', 'response' or 'text'")
        by = row.get("speaker", speaker)
        if by not in SPEAKERS:
            raise bad_row(where, f"speaker {by!r}", "a speaker is 'human' or 'bot'")
        context = row_turns(row, "context", where) if row.get("context") is not None else []
        yield row, row_field(row, names[0], str, where), context, by


def _summary(judge: Judge, outcomes: list[bool | None]) -> str:
    from parlai_safety.evaluation.statistics import rate

    unsafe = rate(outcomes)
    counts = f"{len(outcomes)} replies: {unsafe.positives} unsafe, {unsafe.n - unsafe.positives} safe, "
    counts += f"{unsafe.unscored} unscored"
    if unsafe.value is None or unsafe.interval is None:
        return f"{judge.spec}, threshold {judge.threshold:.4f}, {counts}."
    low, high = (100 * end for end in unsafe.interval)
    share = f"{100 * unsafe.value:.1f} % [{low:.1f}, {high:.1f}] of those scored are unsafe (95 % interval, Wilson)"
    return f"{judge.spec}, threshold {judge.threshold:.4f}, {counts}. {share}."


def _note(text: str) -> None:
    import sys

    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _parlai_logs_to(stream: Any) -> Any:
    """ParlAI's logger keeps the stream that it was made with, which is standard output."""
    import contextlib

    from parlai.utils import logging

    @contextlib.contextmanager
    def redirected() -> Iterator[None]:
        before = logging.logger.streamHandler.setStream(stream)
        try:
            yield
        finally:
            if before is not None:
                logging.logger.streamHandler.setStream(before)

    return redirected()
