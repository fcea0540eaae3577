"""Filtered data made once, as a file, with a report of what was dropped and, for the author rule, a table of authors.

The rules are those of the mutators (see `parlai_safety.mutators.filters`; Xu et al. 2020, arXiv:2010.07079), and the
table is what `--mutators safety_filter_authors` reads. Shares in the report have 95 % intervals that take
conversations, told by their first turn, as independent. Left out: whether the judge is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.evaluation.page import markdown_table, percent
from parlai_safety.files import write_json, write_jsonl, write_text
from parlai_safety.judges.verdict import Judge, is_unsafe
from parlai_safety.loops.exchanges import Exchange, begin, judge_turns, row_exchanges, sha256_of
from parlai_safety.loops.verdicts import Turn
from parlai_safety.mutators.filters import AUTHORS_FORMAT, Author, AuthorRule, author_dropped_as, dropped_as
from parlai_safety.options import options_from
from parlai_safety.runs import alone
from parlai_safety.statistics import clustered_rate
from parlai_safety.tasks.common import Row

KEPT, REPORT, PAGE, AUTHORS, PARTS = "kept.jsonl", "report.json", "report.md", "authors.json", "filter"
FORMAT = "parlai_safety.filter.1"
RULES = ("utterance", "author")
WHY = ("reply", "context", "unscored", "author", "no author")
AUTHOR_BINS = (0.0, 0.06, 0.12, 0.25, 0.5, 1.0)
"""Upper ends of the bins of an author's share of flagged turns."""


class FilterReport(NamedTuple):
    """What was dropped.

    Attributes:
        rows: `read`, `kept`, and the dropped by reason: `reply`, `context`, `unscored`, `author`, `no author`.
        authors: `known`, `judged` (with turns enough) and `dropped` authors; empty for the rule utterance.
        groups: dimension -> group -> n, dropped, share and interval, and the reasons.
    """

    rows: dict[str, int]
    authors: dict[str, int]
    groups: dict[str, dict[str, dict[str, Any]]]


def filter_rows(
    rows: Iterable[Row | Mapping[str, Any]],
    *,
    judge: Judge,
    folder: Path,
    rule: str = "utterance",
    context: bool = False,
    author_share: float = 0.12,
    author_min: int = 10,
    no_author: str = "refuse",
    name: str = "rows",
) -> FilterReport:
    """Filter rows of our tasks, or JSON objects as `-t safety:file` reads them; see `filter_exchanges`.

    A row whose `unsafe` is True counts as flagged whatever the judge says; `row._replace(unsafe=None)` is a raw log.
    """
    return filter_exchanges(
        row_exchanges(rows),
        judge=judge,
        folder=folder,
        rule=rule,
        context=context,
        authors=AuthorRule(author_share, author_min, no_author),
        name=name,
    )


def filter_exchanges(
    exchanges: Sequence[Exchange],
    *,
    judge: Judge,
    folder: Path,
    rule: str,
    context: bool = False,
    authors: AuthorRule | None = None,
    name: str = "rows",
    examples: int = 0,
) -> FilterReport:
    """Write what is left, and the report, or do what is left of that.

    The folder receives `kept.jsonl` (for `-t safety:file`), `report.json`, `report.md`, for the rule author
    `authors.json`, and `filter/`: the settings and every verdict. A run that was killed goes on where it stood.

    Args:
        exchanges: replies in their contexts, at least one.
        judge: says what is unsafe.
        folder: where to; of one run.
        rule: "utterance" or "author".
        context: with the rule utterance, drop an exchange also where the last turn of its context is unsafe.
        authors: which authors are dropped.
        name: of the data, for the report.
        examples: dropped exchanges that the page shows behind a warning.

    Raises:
        SafetyError: the rule is unknown, an option is out of range, an author is not named, nothing is left, or the
            folder holds a run with other settings.
    """
    check_rule(rule)
    authors = options_from(asdict(authors or AuthorRule()), AuthorRule)
    if rule == "author":
        for exchange in exchanges:  # before a judge is asked for hours
            if not exchange.message.get("user_id"):
                author_dropped_as(None, {}, authors)
    settings = {
        "exchanges": {"n": len(exchanges), "sha256": sha256_of(exchanges), "name": name},
        "judge": {"spec": judge.spec, "fingerprint": judge.fingerprint, "threshold": judge.threshold},
        "rule": rule,
        **({"context": context} if rule == "utterance" else asdict(authors)),
    }
    with alone(folder):
        begin(folder, KEPT, PARTS, settings)
        looked_at = [
            (None if exchange.avoided else exchange.said, exchange.heard if context and rule == "utterance" else None)
            for exchange in exchanges
        ]
        path = folder / PARTS / "verdicts.jsonl"
        verdicts = judge_turns(judge, (turn for turns in looked_at for turn in turns), path)

        def unsafe(turn: Turn | None) -> bool | None:
            return False if turn is None else is_unsafe(verdicts[turn], judge.threshold)

        flags = [
            (e.avoided or unsafe(said), unsafe(heard)) for e, (said, heard) in zip(exchanges, looked_at, strict=True)
        ]
        table: dict[str, Author] = {}
        if rule == "author":
            table = author_table(exchanges, [reply for reply, _ in flags])
            why = [author_dropped_as(exchange.message.get("user_id"), table, authors) for exchange in exchanges]
            rows = {who: author._asdict() for who, author in sorted(table.items())}
            content = {"format": AUTHORS_FORMAT, **settings, "authors": rows}
            write_json(folder / AUTHORS, content)
        else:
            why = [dropped_as(reply, heard) for reply, heard in flags]
        if None not in why:
            raise SafetyError(
                f"The rule {rule} leaves nothing of {len(exchanges)} exchanges",
                "There would be no data to learn from",
                "Look at the threshold of the judge and at the report of its card, or choose a higher share",
            )
        report = FilterReport(
            {"read": len(exchanges), "kept": why.count(None), **{name: why.count(name) for name in WHY}},
            _authors(table, authors) if table else {},
            _groups(exchanges, why, table),
        )
        write_jsonl(folder / KEPT, (e.row for e, dropped in zip(exchanges, why, strict=True) if dropped is None))
        write_json(folder / REPORT, {"format": FORMAT, **settings, **report._asdict()})
        shown = [(e, dropped) for e, dropped in zip(exchanges, why, strict=True) if dropped is not None][:examples]
        write_text(folder / PAGE, _page(settings, report, shown))
    return report


def check_rule(rule: str) -> str:
    """Return the name of a rule if there is one of that name.

    Raises:
        SafetyError: there is none.
    """
    if rule not in RULES:
        raise SafetyError(
            f"The rule is {rule!r}", f"It is one of {', '.join(RULES)}", did_you_mean(rule, RULES, "Use utterance")
        )
    return rule


def author_table(exchanges: Sequence[Exchange], flags: Sequence[bool | None]) -> dict[str, Author]:
    """The turns of each author that is named.

    Args:
        exchanges: replies, of which some may name their author.
        flags: whether each reply is unsafe; None is unscored.
    """
    turns: Counter[str] = Counter()
    flagged: Counter[str] = Counter()
    unscored: Counter[str] = Counter()
    for exchange, flag in zip(exchanges, flags, strict=True):
        who = exchange.message.get("user_id")
        if who:
            turns[who] += 1
            flagged[who] += flag is True
            unscored[who] += flag is None
    return {who: Author(n, flagged[who], unscored[who]) for who, n in turns.items()}


def _authors(table: Mapping[str, Author], rule: AuthorRule) -> dict[str, int]:
    judged = [author for author in table.values() if author.turns >= rule.filter_author_min]
    dropped = sum(author.share > rule.filter_author_share for author in judged)
    return {"known": len(table), "judged": len(judged), "dropped": dropped}


def _groups(
    exchanges: Sequence[Exchange], why: Sequence[str | None], table: Mapping[str, Author]
) -> dict[str, dict[str, dict[str, Any]]]:
    """What was dropped, of everything and by group."""
    dimensions: dict[str, list[str]] = {
        "all": ["all"] * len(exchanges),
        "source": [exchange.source for exchange in exchanges],
        "speaker": [exchange.said.speaker for exchange in exchanges],
    }
    if table:
        dimensions["author's share"] = [_bin(table.get(e.message.get("user_id") or "")) for e in exchanges]
    return {
        dimension: {
            group: _figures([i for i, name in enumerate(names) if name == group], exchanges, why)
            for group in sorted(set(names))
        }
        for dimension, names in dimensions.items()
    }


def _figures(places: Sequence[int], exchanges: Sequence[Exchange], why: Sequence[str | None]) -> dict[str, Any]:
    outcomes = [why[i] is not None for i in places]
    found = clustered_rate(outcomes, [exchanges[i].conversation for i in places])
    reasons = Counter(str(why[i]) for i in places if why[i] is not None)
    return {
        "n": found.n,
        "dropped": found.positives,
        "share": found.value,
        "interval": None if found.interval is None else list(found.interval),
        "why": dict(sorted(reasons.items())),
    }


def _bin(author: Author | None) -> str:
    if author is None:
        return "not named"
    place = next(i for i, end in enumerate(AUTHOR_BINS) if author.share <= end)
    return "0 %" if not place else f"{AUTHOR_BINS[place - 1]:.0%} to {AUTHOR_BINS[place]:.0%}"


def _page(settings: Mapping[str, Any], report: FilterReport, shown: Sequence[tuple[Exchange, str]]) -> str:
    """The report as Markdown."""
    rows, judge = report.rows, settings["judge"]
    lines = [
        f"# Filter by {settings['rule']}: {settings['exchanges']['name']}",
        f"{rows['read']} exchanges were read and {rows['kept']} kept. The judge is `{judge['spec']}` with the "
        f"threshold {judge['threshold']:g}; an exchange without a score is never safe. Intervals are of 95 %, over "
        "conversations.",
    ]
    if report.authors:
        lines.append(
            f"Of {report.authors['known']} authors {report.authors['judged']} have at least "
            f"{settings['filter_author_min']} turns, and {report.authors['dropped']} of them were dropped: more than "
            f"{settings['filter_author_share']:.0%} of their turns are flagged or have no score."
        )
    table = [
        [
            dimension,
            group,
            str(f["n"]),
            str(f["dropped"]),
            percent(f["share"]),
            _interval(f["interval"]),
            _reasons(f["why"]),
        ]
        for dimension, groups in report.groups.items()
        for group, f in groups.items()
    ]
    lines.append(markdown_table(["by", "group", "n", "dropped", "share", "interval", "why"], table))
    if shown:
        lines.append("<details><summary>Warning: unsafe text. Exchanges that were dropped.</summary>")
        for exchange, dropped in shown:
            said = "\n".join([*exchange.context, f"-> {exchange.reply}"])
            lines.append(f"Dropped for: {dropped}\n\n" + "\n".join(f"    {line}" for line in said.split("\n")))
        lines.append("</details>")
    return "\n\n".join(lines) + "\n"


def _interval(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{percent(interval[0])} to {percent(interval[1])}"


def _reasons(why: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in why.items()) or "-"
