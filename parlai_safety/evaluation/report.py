"""The demo's report of several systems: a table for the terminal, Markdown, JSON and one self-contained HTML page.

A report shows what was measured and by whom: each unsafe rate stands with its interval, its n and the number of
unscored replies, and the judge stands with its own error rates. A value that is missing reads "unscored" or "n/a" and
never 0. The page is made of the blocks of `page.py`, as that of `report_runs.py` is, which shows whole evaluations.
Left out: measuring anything, comparing systems reply by reply, and correcting a rate for the errors of its judge; the
report says that rates are uncorrected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation import page as pages
from parlai_safety.evaluation import plots
from parlai_safety.evaluation.page import MISSING, UNSCORED, fraction, in_words, number, percent, plain
from parlai_safety.evaluation.statistics import Interval, intervals_overlap
from parlai_safety.files import write_json, write_text

_JUDGE_CARD = ("description", "auc", "sensitivity", "specificity", "threshold", "trained_on")


@dataclass(frozen=True)
class Example:
    """A reply in its context, with its verdict.

    Attributes:
        context: turns before the reply, oldest first; the last one is answered.
        reply: what the system said.
        p_unsafe: the judge's P(unsafe) in [0, 1], or None where it gave none.
        verdict: "unscored" exactly where `p_unsafe` is None.

    Raises:
        SafetyError: the probability is out of range, or does not agree with the verdict.
    """

    context: Sequence[str]
    reply: str
    p_unsafe: float | None
    verdict: Literal["safe", "unsafe", "unscored"]

    def __post_init__(self) -> None:
        if self.verdict not in ("safe", "unsafe", "unscored"):
            raise SafetyError(
                f"An example has the verdict {self.verdict!r}",
                "A reply is safe, unsafe or unscored",
                "Give one of these three words",
            )
        if (self.p_unsafe is None) != (self.verdict == "unscored"):
            raise SafetyError(
                f"An example has p_unsafe {self.p_unsafe!r} and the verdict {self.verdict!r}",
                "A reply without a probability is unscored, and an unscored reply has none",
                "Give None together with 'unscored', or a probability together with 'safe' or 'unsafe'",
            )
        if self.p_unsafe is not None and not 0 <= self.p_unsafe <= 1:
            raise SafetyError(
                f"An example has p_unsafe {self.p_unsafe!r}",
                "It is a probability",
                "Give a number in [0, 1], or None for a reply that could not be scored",
            )


@dataclass(frozen=True)
class SystemResult:
    """What was measured of one system. A number that is NaN or infinite was not measured and becomes None.

    Attributes:
        name: one line, unique in a report; shown as it is.
        unsafe_rate: share of unsafe replies among the scored ones, in [0, 1]; None is unscored.
        unsafe_interval: its interval (low, high), given exactly where the rate is. Ends beyond [0, 1], which Student's
            interval can have, are cut to it.
        n: number of scored replies.
        unscored: number of replies that the judge could not score; not in `n`.
        perplexity: on ordinary talk, at least 1.
        f1: mean token F1 with the reference replies, in [0, 1].
        distinct_2: distinct bigrams divided by all bigrams, in [0, 1].
        canned_rate: share of canned or looping replies, in [0, 1].
        seconds: wall-clock time that the system took, at least 0.
        examples: replies to show behind a content warning.
        extra: further measures under names of their own.

    Raises:
        SafetyError: a value is out of its range, or a rate has no interval or no replies.
    """

    name: str
    unsafe_rate: float | None
    unsafe_interval: Sequence[float] | None
    n: int
    unscored: int
    perplexity: float | None
    f1: float | None
    distinct_2: float | None
    canned_rate: float | None
    seconds: float | None
    examples: Sequence[Example] = field(default_factory=list)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.name.isprintable():
            raise SafetyError(
                f"A system is named {self.name!r}",
                "The name is printed on one line of a table and in a plot",
                "Give it a name of printable characters",
            )
        ranges = {
            "unsafe_rate": (0, 1),
            "perplexity": (1, math.inf),
            "f1": (0, 1),
            "distinct_2": (0, 1),
            "canned_rate": (0, 1),
            "seconds": (0, math.inf),
        }
        for key in ranges:
            value = getattr(self, key)
            if value is not None and not math.isfinite(value):
                object.__setattr__(self, key, None)
        for key, (low, high) in {**ranges, "n": (0, math.inf), "unscored": (0, math.inf)}.items():
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                raise SafetyError(
                    f"System {self.name!r} has {key} {value!r}",
                    f"It lies in [{low}, {high}]; a rate is a share and not a percentage",
                    "Give the number in its unit, or None where it was not measured",
                )
        if self.unsafe_rate is None:
            object.__setattr__(self, "unsafe_interval", None)
            return
        if self.unsafe_interval is None or not self.n:
            raise SafetyError(
                f"{self.name!r} has unsafe_rate {self.unsafe_rate!r}, n {self.n} and interval {self.unsafe_interval!r}",
                "A rate is shown only with its interval and the number of replies that it was counted on",
                "Take all three from evaluation.statistics.rate, or give None for the rate",
            )
        bottom, top = (float(end) for end in self.unsafe_interval)
        if not bottom <= self.unsafe_rate <= top:
            raise SafetyError(
                f"System {self.name!r} has unsafe_rate {self.unsafe_rate!r} and interval [{bottom}, {top}]",
                "The interval must hold the rate",
                "Give both as shares in [0, 1], low end first",
            )
        object.__setattr__(self, "unsafe_interval", Interval(max(bottom, 0.0), min(top, 1.0)))


@dataclass(frozen=True)
class Report:
    """Everything that a report shows.

    Attributes:
        title: one line.
        systems: results in the order of the table. The first is the one that the headline compares with.
        judge: the judge's card. `spec` names the judge and is required; the card shows `description`, `auc`,
            `sensitivity`, `specificity`, `threshold` and `trained_on` first and any other key after them.
        seed: the seed of the run, or one a part of it.
        versions: package or program -> version.
        data: what was learnt from and evaluated on: names, counts, hashes. May be nested.
        commands: what to type to repeat the run, one command a line.
        hardware: the machine, in words.
        notes: sentences for the reader: limits, deviations, failures.
        confidence: coverage of the intervals, in (0, 1).

    Raises:
        SafetyError: no system, two systems of one name, or no judge.
    """

    title: str
    systems: Sequence[SystemResult]
    judge: Mapping[str, Any]
    seed: Any
    versions: Mapping[str, str]
    data: Mapping[str, Any]
    commands: Sequence[str]
    hardware: str
    notes: Sequence[str] = field(default_factory=list)
    confidence: float = 0.95

    def __post_init__(self) -> None:
        names = [system.name for system in self.systems]
        if not names or len(set(names)) < len(names):
            raise SafetyError(
                f"A report was given the systems {names}",
                "It compares at least one system, and tells them apart by name",
                "Give each result a name of its own",
            )
        if not self.judge.get("spec"):
            raise SafetyError(
                "A report was given no judge",
                "An unsafe rate means nothing without the judge that counted it",
                "Put the judge's name under judge['spec']",
            )


class ReportFiles(NamedTuple):
    """The files of a written report."""

    json: Path
    html: Path
    markdown: Path


def write_report(report: Report, folder: str | Path) -> ReportFiles:
    """Write report.json, report.html and report.md into a folder, each whole or not at all.

    Everything is rendered before the first file is written. The same report gives the same bytes.
    """
    folder = Path(folder)
    files = ReportFiles(folder / "report.json", folder / "report.html", folder / "report.md")
    write_files(files, to_json(report), page_of(report))
    return files


def write_files(files: ReportFiles, document: dict[str, Any], page: pages.Page) -> None:
    """Write a report's three files, each whole or not at all, after everything was rendered."""
    shown, text = pages.to_html(page), pages.to_markdown(page)
    write_json(files.json, document)
    write_text(files.html, shown)
    write_text(files.markdown, text)


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain JSON values. NaN and infinity become null, since neither was measured.

    Raises:
        TypeError: `judge`, `data`, `seed` or `extra` holds something that JSON has no form for.
    """
    systems = []
    for system in report.systems:
        row = {key: getattr(system, key) for key in SystemResult.__dataclass_fields__ if key != "examples"}
        extra = row.pop("extra")
        systems.append({**row, "extra": extra, "examples": [asdict(example) for example in system.examples]})
    document: dict[str, Any] = plain(
        {
            "title": report.title,
            "confidence": report.confidence,
            "systems": systems,
            "judge": report.judge,
            "seed": report.seed,
            "versions": report.versions,
            "data": report.data,
            "commands": report.commands,
            "hardware": report.hardware,
            "notes": report.notes,
        }
    )
    return document


def terminal_table(report: Report) -> str:
    """The table of all systems in plain characters, and one line about the judge. No trailing newline."""
    from tabulate import tabulate

    table = tabulate(
        _rows(report),
        headers=_headers(report),
        tablefmt="simple",
        disable_numparse=True,
        colalign=("left", *["right"] * (len(_columns(report)) - 1)),
    )
    return f"{table}\n\n{_judge_line(report)}"


def markdown_table(report: Report) -> str:
    """The table of all systems in Markdown. No trailing newline."""
    return pages.markdown_table(_headers(report), _rows(report))


def to_markdown(report: Report) -> str:
    """The report as Markdown, without the plot and without the examples."""
    return pages.to_markdown(page_of(report))


def to_html(report: Report) -> str:
    """The report as one HTML page that asks the network for nothing."""
    return pages.to_html(page_of(report))


def page_of(report: Report) -> pages.Page:
    """The report as blocks."""
    confidence = f"{100 * report.confidence:g} %"
    sections = [
        pages.Section(
            "measured",
            "What was measured",
            [
                pages.Table(
                    f"All systems. The unsafe rate stands with its {confidence} interval; n counts the replies that "
                    "were scored.",
                    _headers(report),
                    _rows(report),
                ),
                pages.Bullets([*remarks(report), *report.notes]),
            ],
        ),
        pages.Section("traded", "Safety against fluency", [_traded(report, confidence)]),
        pages.Section("meaning", "What the numbers mean", [pages.Terms(_meanings(confidence, report))]),
        pages.Section("judge", "Who judged", [pages.Prose(ABOUT_JUDGES), pages.Terms(_judge_card(report))]),
    ]
    if any(system.extra for system in report.systems):
        blocks: list[pages.Block] = []
        for system in report.systems:
            if system.extra:
                blocks += [pages.Heading(system.name), pages.Terms(list(system.extra.items()))]
        sections.append(pages.Section("further", "Further measures", blocks))
    talks = [
        pages.Talk(system.name, "", [_exchange(example) for example in system.examples])
        for system in report.systems
        if system.examples
    ]
    if talks:
        sections.append(pages.Section("examples", "Example replies", [pages.Warned(talks)]))
    run = [("seed", report.seed), ("hardware", report.hardware), ("versions", report.versions), ("data", report.data)]
    commands = [pages.Code(report.commands, "Commands")] if report.commands else []
    sections.append(pages.Section("repeat", "Repeat the run", [*commands, pages.Terms(run)]))
    return pages.Page(report.title, headline(report), sections)


ABOUT_JUDGES = (
    "Each unsafe rate is as good as its judge. Sensitivity is the share of unsafe replies that it finds, specificity "
    "the share of safe replies that it leaves alone, and AUC the chance that it ranks an unsafe reply above a safe one "
    "(0.5 is a coin)."
)


def _meanings(confidence: str, report: Report) -> list[tuple[str, str]]:
    return [
        (
            "unsafe",
            "Share of a system's replies that the judge calls unsafe, of those that it could score. Lower is safer.",
        ),
        (f"[{confidence}]", ABOUT_INTERVALS),
        ("unscored", ABOUT_UNSCORED),
        (
            "perplexity",
            "How surprised a system is by ordinary human talk, from 1 upward. Lower is more fluent. Comparable only "
            "between systems of one vocabulary.",
        ),
        (
            "F1",
            "Overlap of words with a person's reply to the same context, from 0 to 1. Higher is nearer to what people "
            "said.",
        ),
        (
            "distinct-2",
            "Distinct pairs of neighbouring words divided by all such pairs, from 0 to 1. Higher is more varied.",
        ),
        (
            "canned",
            "Share of replies that are given to at least three contexts (and to 1 % of them), or that repeat a phrase "
            "three times in a row. A low unsafe rate with many canned replies is evasion and not safety.",
        ),
        ("time", "Wall-clock time that the system took on the hardware below."),
        *(
            (_TALK_COLUMNS[name][0] if name in _TALK_COLUMNS else name, meaning)
            for name, meaning in _TALK_MEANINGS.items()
            if any(name in system.extra for system in report.systems)
        ),
    ]


_TALK_MEANINGS = {
    "evasive": "Share of replies to adversarial contexts that refuse, or change the subject, by the detector of "
    "evasive replies (`parlai safety_detectors` prints its card). A low unsafe rate can be bought with it.",
    "coherence": "Mean probability, from 0 to 1, that a reply to an adversarial context belongs to it and not to "
    "another conversation, by a scorer that learnt from ordinary talk. Higher is more to the point.",
    "ordinary_evasive": "The same share of replies to ordinary talk, where there is nothing to evade.",
    "word_list": "Share of replies to adversarial contexts with a word of the list that ships. Most unsafe replies "
    "have none.",
    "our_canned": "Share of replies to adversarial contexts that are canned replies of this package, word for word.",
    "unsafe_canned_safe": "The unsafe rate where those count as safe, for they were written to be: a judge that flags "
    "one is mistaken.",
    "latency_ms": "Milliseconds that a reply takes, one message at a time, all systems in turn: the median.",
    "latency_ratio": "The same as a multiple of the first system's time for the same context: the median.",
}


ABOUT_INTERVALS = (
    "Interval in which the share may well lie, had other contexts of the same kind been drawn. The lowest of many "
    "systems is partly the lowest by luck, which the interval does not cover."
)
ABOUT_UNSCORED = "Replies that the judge could not score. They are neither safe nor unsafe, and are in no rate."


def _traded(report: Report, confidence: str) -> pages.Block:
    left_out = ", ".join(system.name for system in report.systems if not _drawable(system))
    picture = plot_svg(report)
    if picture is None:
        return pages.Prose(f"There is no plot: no system has both an unsafe rate and a perplexity ({left_out}).")
    caption = f"Further down is safer, further left is more fluent. Bars are {confidence} intervals of the unsafe rate."
    if _drawable(report.systems[0]):
        caption += f" The hollow mark is {report.systems[0].name}."
    if left_out:
        caption += f" Not drawn, for want of an unsafe rate or a perplexity: {left_out}."
    return pages.Figure([picture], caption)


def _exchange(example: Example) -> pages.Exchange:
    words = example.verdict if example.p_unsafe is None else f"{example.verdict}, P(unsafe) {example.p_unsafe:.2f}"
    return pages.Exchange("", example.context, [pages.Said(None, (), example.reply, example.verdict, words)])


class Standing(NamedTuple):
    """What a headline needs of a system: its name, its unsafe rate (None is unscored), and the interval if any."""

    name: str
    rate: float | None
    interval: Interval | None


def headline(report: Report) -> str:
    """The result in plain words: the lowest unsafe rate against the rate of the first system, and at what price."""
    return standings_in_words(
        [
            Standing(s.name, s.unsafe_rate, None if s.unsafe_interval is None else Interval(*s.unsafe_interval))
            for s in report.systems
        ]
    )


def standings_in_words(standings: Sequence[Standing]) -> str:
    """The lowest unsafe rate against the rate of the first system; at least one system."""
    base = standings[0]
    best = min((s for s in standings[1:] if s.rate is not None), key=lambda s: _known(s.rate), default=None)
    if len(standings) == 1:
        return f"{base.name}: {_rate_words(base.rate)}."
    if best is None:
        return f"{base.name}: {_rate_words(base.rate)}. No other system could be scored."
    if base.rate is None:
        return f"{best.name}: {_rate_words(best.rate)}. {base.name} is unscored, so there is nothing to compare with."
    if _known(best.rate) >= base.rate:
        return f"No system gives fewer unsafe replies than {base.name}, with {percent(base.rate)}."
    words = f"{best.name}: {_rate_words(best.rate)} against {percent(base.rate)} of {base.name}."
    if best.interval is None or base.interval is None:
        return words + " Not both have an interval, so this run does not settle which is lower."
    if intervals_overlap(best.interval, base.interval):
        words += " The intervals overlap, so this run does not settle which is lower."
    return words


def remarks(report: Report) -> list[str]:
    """Sentences that must stand beside the table: the price of the headline, unscored replies, uncorrected rates."""
    sentences = []
    base, best = report.systems[0], _best(report)
    if best is not None:
        parts = [
            f"{label} {show(getattr(best, key))} against {show(getattr(base, key))}"
            for label, key, show in (
                ("perplexity", "perplexity", number),
                ("F1", "f1", fraction),
                ("distinct-2", "distinct_2", fraction),
                ("canned replies", "canned_rate", percent),
            )
        ]
        sentences.append(f"{best.name} against {base.name}: {', '.join(parts)}.")
    sentences.extend(
        f"{system.name}: unscored, with {system.n} of {system.n + system.unscored} replies scored."
        for system in report.systems
        if system.unsafe_rate is None
    )
    bounds = [_bounds_in_words(s) for s in report.systems if s.unscored and s.unsafe_rate is not None]
    if bounds:
        sentences.append(
            f"Unscored replies are in no rate. Unsafe rate if all of them were safe, and if all were unsafe: "
            f"{'; '.join(bounds)}."
        )
    sentences.append(
        "Unsafe rates are counted by the judge and not corrected for its errors; intervals cover sampling error alone."
    )
    return sentences


def unscored_bounds(rate: float, n: int, unscored: int) -> Interval:
    """The rates in [0, 1] if all unscored replies were safe, and if all were unsafe; `rate` is that of the n others."""
    return Interval(rate * n / (n + unscored), (rate * n + unscored) / (n + unscored))


def _bounds_in_words(system: SystemResult) -> str:
    ends = unscored_bounds(_known(system.unsafe_rate), system.n, system.unscored)
    total = system.n + system.unscored
    return f"{system.name} {percent(ends.low)} and {percent(ends.high)} ({system.unscored} of {total} unscored)"


def _best(report: Report) -> SystemResult | None:
    """The system after the first one with the lowest unsafe rate, if any of them could be scored."""
    scored = (system for system in report.systems[1:] if system.unsafe_rate is not None)
    return min(scored, key=lambda system: _known(system.unsafe_rate), default=None)


def plot_svg(report: Report) -> str | None:
    """Unsafe rate over perplexity as an SVG element for an HTML page, or None where no system has both."""
    points = [
        plots.Point(
            system.name,
            _known(system.perplexity),
            100 * _known(system.unsafe_rate),
            y_ends=_per_cent(system.unsafe_interval),
            hollow=system is report.systems[0],
        )
        for system in report.systems
        if _drawable(system)
    ]
    if not points:
        return None
    drawn = (system for system in report.systems if _drawable(system))
    return plots.scatter(
        points,
        plots.Axis("perplexity on ordinary talk", may_be_log=True),
        plots.Axis("unsafe replies, %", from_zero=True),
        name="traded",
        spoken="; ".join(f"{s.name}: {_unsafe_words(s)}, perplexity {number(s.perplexity)}" for s in drawn),
    )


def _drawable(system: SystemResult) -> bool:
    return system.unsafe_rate is not None and system.perplexity is not None


def _per_cent(ends: Sequence[float] | None) -> plots.Ends | None:
    return None if ends is None else (100 * ends[0], 100 * ends[1])


def _known(value: float | None) -> float:
    assert value is not None
    return float(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    for unit, size, limit in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, math.inf)):
        if round(seconds / size, 1) * size < limit:
            return f"{seconds / size:.1f} {unit}"
    raise AssertionError("the last limit is infinite")


def _unsafe(system: SystemResult) -> str:
    if system.unsafe_rate is None or system.unsafe_interval is None:
        return UNSCORED
    low, high = (100 * end for end in system.unsafe_interval)
    return f"{percent(system.unsafe_rate)} [{low:.1f}, {high:.1f}]"


def _unsafe_words(system: SystemResult) -> str:
    return _rate_words(system.unsafe_rate)


def _rate_words(rate: float | None) -> str:
    return UNSCORED if rate is None else f"{percent(rate)} unsafe replies"


Column = tuple[str, Callable[[SystemResult], str]]
_COLUMNS: tuple[Column, ...] = (
    ("system", lambda system: system.name),
    ("unsafe", _unsafe),
    ("n", lambda system: str(system.n)),
    ("unscored", lambda system: str(system.unscored)),
    ("perplexity", lambda system: number(system.perplexity)),
    ("F1", lambda system: fraction(system.f1)),
    ("distinct-2", lambda system: fraction(system.distinct_2)),
    ("canned", lambda system: percent(system.canned_rate)),
    ("time", lambda system: _duration(system.seconds)),
)
_TALK_COLUMNS: dict[str, Column] = {
    "evasive": ("evasive", lambda system: percent(system.extra.get("evasive"))),
    "coherence": ("coherence", lambda system: fraction(system.extra.get("coherence"))),
    "ordinary_evasive": ("evasive in ordinary talk", lambda system: percent(system.extra.get("ordinary_evasive"))),
    "unsafe_canned_safe": ("canned as safe", lambda system: percent(system.extra.get("unsafe_canned_safe"))),
    "latency_ms": ("ms a reply", lambda system: number(system.extra.get("latency_ms"))),
}
"""Columns of measures that only some jobs make, and keep in `extra`."""


def _columns(report: Report) -> list[Column]:
    measured = {name for system in report.systems for name in system.extra}
    return [*_COLUMNS, *(column for name, column in _TALK_COLUMNS.items() if name in measured)]


def _headers(report: Report) -> list[str]:
    interval = f"[{100 * report.confidence:g} %]"
    return [f"{name} {interval}" if name == "unsafe" else name for name, _ in _columns(report)]


def _rows(report: Report) -> list[list[str]]:
    columns = _columns(report)
    return [[show(system) for _, show in columns] for system in report.systems]


def _judge_card(report: Report) -> list[tuple[str, str]]:
    keys = ["spec", *_JUDGE_CARD, *(key for key in report.judge if key not in ("spec", *_JUDGE_CARD))]
    names = {"spec": "judge", "auc": "AUC"}
    return [(names.get(key, key.replace("_", " ")), in_words(report.judge.get(key))) for key in keys]


def _judge_line(report: Report) -> str:
    auc, sensitivity, specificity = (in_words(report.judge.get(key)) for key in ("auc", "sensitivity", "specificity"))
    return (
        f"judge {report.judge['spec']}: AUC {auc}, sensitivity {sensitivity}, specificity {specificity}; "
        "rates are not corrected for its errors"
    )
