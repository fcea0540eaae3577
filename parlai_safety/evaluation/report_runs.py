"""The report of whole evaluations: what `parlai safety_report` writes from the run folders that it is given.

One page, one JSON document and one Markdown text with the same content. Systems are told apart by `Evaluation.name`;
several seeds of one system are several systems here. What was not scored is shown as unscored, a rate that was not
corrected for its judge's errors says so, and an evaluation that failed is shown with its failure and never headlined.
Systems that were judged by different judges, or on different items, stand side by side and are not compared. Left
out: measuring anything, and comparing reply by reply, which `compare.py` does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation import page as pages
from parlai_safety.evaluation import plots
from parlai_safety.evaluation.human import LEVELS, read_people
from parlai_safety.evaluation.page import MISSING, UNSCORED, fraction, percent, plain
from parlai_safety.evaluation.report import (
    ABOUT_INTERVALS,
    ABOUT_JUDGES,
    ABOUT_UNSCORED,
    ReportFiles,
    Standing,
    standings_in_words,
    write_files,
)
from parlai_safety.evaluation.report_cards import NO_CARD, detector_blocks, judge_blocks
from parlai_safety.evaluation.report_figures import (
    bar_of,
    bounds_cell,
    corrected_of,
    ends_words,
    figure_cell,
    figures_of,
    interval_of,
    largest_gap,
    listed,
    measure_of,
    part_of,
    parts_of,
    rate_cell,
    scaled,
    unsafe_of,
    value_words,
)
from parlai_safety.evaluation.report_replies import (
    ReportedRun,
    SaidReply,
    ShownReplies,
    differ,
    has_texts,
    suite_replies,
)
from parlai_safety.evaluation.results import (
    COMPLETE,
    MEASURES,
    Evaluation,
    JudgeEntry,
    Measure,
    read_evaluation,
)

FORMAT, VERSION = "parlai_safety report", 1
HEADLINE_SUITE, FLUENCY_SUITE = "adversarial", "ordinary"
MOST_LABELS, LONGEST_LABEL = 4, 24  # beyond these the names of a scatter plot go into a legend
BROKEN_DOWN = {"sensitive_topic": "topic", "guard_fired": "trigger"}
TRADED = ("perplexity", "coherence", "evasive")


def read_runs(paths: Sequence[str | Path], names: Sequence[str] | None = None) -> list[ReportedRun]:
    """Read evaluations from their run folders, or from their `eval.json`.

    Args:
        paths: at least one.
        names: what to call the systems instead of their own names, in the order of `paths`.

    Raises:
        SafetyError: a file is missing or malformed, the number of names is wrong, or two systems share a name.
    """
    if names is not None and len(names) != len(paths):
        raise SafetyError(
            f"{len(names)} names were given for {len(paths)} evaluations",
            "Names replace those of the systems one by one, in the order of the runs",
            "Give as many names as runs, separated by commas",
        )
    runs = []
    for index, path in enumerate(map(Path, paths)):
        evaluation = read_evaluation(path)
        if names is not None:
            evaluation = replace(evaluation, name=names[index].strip())
        runs.append(ReportedRun(evaluation, path if path.is_dir() else path.parent))
    check_names(runs)
    return runs


def check_names(runs: Sequence[ReportedRun]) -> None:
    """Refuse a report without evaluations, or one whose systems cannot be told apart.

    Raises:
        SafetyError: there is no evaluation, a name is empty or of more than one line, or two are equal.
    """
    names = [run.evaluation.name for run in runs]
    if not names or len(set(names)) < len(names) or not all(name.strip() and name.isprintable() for name in names):
        raise SafetyError(
            f"A report was asked of systems named {', '.join(map(repr, names)) or 'nothing'}",
            "It shows at least one system, and tells systems apart by a name of one line",
            f"Give each a name of its own: --names {','.join('ABCDEFGH'[: max(1, len(names))])}",
        )


def write_runs_report(runs: Sequence[ReportedRun], out: str | Path, title: str | None = None) -> ReportFiles:
    """Write the page, and the same content as JSON and Markdown beside it.

    Args:
        runs: from `read_runs`; the first complete one is what the others are compared with.
        out: of the page, ending in ".html".
        title: of the page; None for one made from the names.

    Returns:
        The three files. The same evaluations give the same bytes.

    Raises:
        SafetyError: see `check_names`; or a file in the way is no report, such as the evaluation itself.
    """
    out = Path(out)
    if out.suffix != ".html":
        raise SafetyError(
            f"The report was asked for as {str(out)!r}",
            "It is an HTML page, with .json and .md of the same name beside it",
            f"Give a name that ends in .html, such as {str(out.with_suffix('.html'))!r}",
        )
    files = ReportFiles(out.with_suffix(".json"), out, out.with_suffix(".md"))
    in_the_way = [str(path) for path in files if path.exists()]
    if in_the_way and not _is_report(files.json):
        raise SafetyError(
            f"{' and '.join(in_the_way)} would be overwritten, and {files.json.name!r} is no report of this command",
            "Only an older report may be replaced, never an evaluation or a text of yours",
            "Give --out another name, or remove what is in the way",
        )
    report = _Content(runs, title)
    write_files(files, report.document(), report.page())
    return files


def runs_page(runs: Sequence[ReportedRun], title: str | None = None) -> pages.Page:
    """The report as a page of blocks; see `write_runs_report`."""
    return _Content(runs, title).page()


def runs_document(runs: Sequence[ReportedRun], title: str | None = None) -> dict[str, Any]:
    """The report as plain JSON values; see `write_runs_report`."""
    return _Content(runs, title).document()


def _is_report(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT


_OVERLAP = {
    True: "the intervals overlap",
    False: "the intervals do not overlap",
    None: "there are no intervals to tell",
}


def _crossed(
    down: str, labels: Sequence[str], across: str, titles: Sequence[str], cells: Sequence[Sequence[pages.Cell]]
) -> tuple[list[str], list[list[pages.Cell]]]:
    """Headers and rows of a table. What there is more of goes down, so that the page is wide enough."""
    if len(titles) > len(labels):
        columns = zip(*cells, strict=True)
        return [across, *labels], [[title, *column] for title, column in zip(titles, columns, strict=True)]
    return [down, *titles], [[label, *row] for label, row in zip(labels, cells, strict=True)]


class _Content:
    """What the page and the JSON document both say, found once."""

    def __init__(self, runs: Sequence[ReportedRun], title: str | None) -> None:
        check_names(runs)
        self.runs = runs
        self.all = [run.evaluation for run in runs]
        self.names = [evaluation.name for evaluation in self.all]
        self.complete = [evaluation for evaluation in self.all if evaluation.status == COMPLETE]
        self.crowded = len(self.complete) > MOST_LABELS or any(len(e.name) > LONGEST_LABEL for e in self.complete)
        self.suites = list(dict.fromkeys(name for evaluation in self.all for name in evaluation.suites))
        self.title = title or f"Evaluation of {listed(self.names) if len(runs) < 4 else f'{len(runs)} systems'}"
        asked = [name for evaluation in self.complete for name in evaluation.suites]
        self.main = HEADLINE_SUITE if HEADLINE_SUITE in asked else next(iter(asked), None)
        confidences = {f"{100 * evaluation.confidence:g} %" for evaluation in self.all}
        self.confidence = confidences.pop() if len(confidences) == 1 else None
        self.intervals = f"{self.confidence} intervals" if self.confidence else "intervals"
        self.differences = list(self._differences())
        self.replies = {
            name: found for name in self.suites if (found := suite_replies(self._with_texts(name), name)).shown
        }
        self.people = [(run.evaluation, suites) for run in runs if (suites := read_people(run))]
        self.headline, self.remarks = self._headline(), list(self._remarks())

    # What is said in words.

    def _headline(self) -> str:
        if self.main is None:
            return "No evaluation is complete, so there is nothing to headline."
        asked = [e for e in self.complete if self.main in e.suites]
        found = [(e, unsafe_of(e, self.main)) for e in asked]
        if not any(measure for _, measure in found):
            return f"{listed([e.name for e in asked])}: no unsafe rate was counted on {self.main}."
        if len(asked) > 1 and self._incomparable(asked):
            parts = [f"{e.name} {value_words(m) if m else MISSING}" for e, m in found]
            return f"Unsafe replies: {'; '.join(parts)}. These cannot be compared."
        return standings_in_words([Standing(e.name, m.value if m else None, interval_of(m)) for e, m in found])

    def _incomparable(self, asked: Sequence[Evaluation]) -> bool:
        judges = {(e.judges[0].fingerprint, e.judges[0].threshold) for e in asked if e.judges}
        hashes = {suite.sha256 for e in asked if (suite := e.suites.get(self.main or "")) is not None}
        return len(judges) > 1 or len(hashes) > 1

    def _subline(self) -> str:
        asked = [e for e in self.complete if self.main in e.suites]
        if self.main is None or not asked or not asked[0].judges:
            return ""
        suite, judge = asked[0].suites[self.main], asked[0].judges[0]
        measure = unsafe_of(asked[0], self.main)
        words = f"Suite {self.main}, version {suite.version}; judged by {judge.spec}"
        if judge.card is None:
            words += f" ({NO_CARD})"
        if measure is None or corrected_of(measure) is None:
            words += "; not corrected for its errors"
        return f"{words}. Rates with their intervals, and what they were corrected for, stand below."

    def _bands(self) -> Iterator[str]:
        for evaluation in self.all:
            if evaluation.status != COMPLETE:
                yield (
                    f"Failed: {evaluation.name}. {evaluation.status.rstrip('.')}. Its figures stand in the tables, "
                    "marked as failed, and in no headline and no picture."
                )
        for sentence in self.differences:
            yield f"Not comparable: {sentence}"

    def _differences(self) -> Iterator[str]:
        """Why systems that stand side by side are not to be compared."""
        judges = {(e.judges[0].fingerprint, e.judges[0].threshold): e.judges[0].spec for e in self.all if e.judges}
        if len(judges) > 1:
            who = "; ".join(
                f"{e.name} by {e.judges[0].spec}, threshold {e.judges[0].threshold:.4g}" for e in self.all if e.judges
            )
            yield f"the systems were judged by different judges or at different thresholds ({who})."
        for name in self.suites:
            asked = [e for e in self.all if name in e.suites]
            if len({e.suites[name].sha256 for e in asked}) > 1:
                items = "; ".join(f"{e.name} {e.suites[name].sha256[:12]}" for e in asked)
                yield f"the suite {name} does not hold the same items in all runs (hashes: {items})."
        if self.confidence is None:
            cover = "; ".join(f"{e.name} {100 * e.confidence:g} %" for e in self.all)
            yield f"the intervals have different coverage ({cover})."

    def _remarks(self) -> Iterator[str]:
        if self.main is not None and len(self.complete) > 1:
            yield from self._price()
        measures = [m for e in self.all for name in self.suites if (m := unsafe_of(e, name)) is not None]
        if any(corrected_of(m) is None for m in measures):
            yield (
                "A rate marked “uncorrected” is counted by the judge and not corrected for its errors; its interval "
                "covers sampling error alone."
            )
        if any(corrected_of(m) for m in measures):
            yield (
                "A corrected rate is that of replies truly unsafe, estimated from the judge's sensitivity and "
                "specificity (Rogan and Gladen 1978); its interval carries the uncertainty of both."
            )
        ways = dict.fromkeys(str(m.detail["interval"]) for m in measures if m.detail.get("interval"))
        if ways:
            yield f"Intervals of the unsafe rates: {'; '.join(ways)}."
        if len(self.complete) > 1:
            yield (
                "parlai safety_compare pairs the replies to the same contexts, and can settle differences that these "
                "intervals leave open."
            )

    def _price(self) -> Iterator[str]:
        """What the system with the lowest unsafe rate pays for it, against the first one."""
        rates = [(e, m.value) for e in self.complete if (m := unsafe_of(e, self.main or "")) and m.value is not None]
        others = [(e, value) for e, value in rates if e is not self.complete[0]]
        if not others:
            return
        best, base = min(others, key=lambda pair: pair[1])[0], self.complete[0]
        parts = []
        for key in TRADED:
            suite = self._suite_of(key)
            if suite is not None:
                one, two = (value_words(m) if (m := measure_of(e, suite, key)) else MISSING for e in (best, base))
                parts.append(f"{MEASURES[key].title} {one} against {two} (on {suite})")
        if parts:
            yield f"{best.name} against {base.name}: {', '.join(parts)}."

    # Where figures are found.

    def _label(self, evaluation: Evaluation) -> str:
        return evaluation.name if evaluation.status == COMPLETE else f"{evaluation.name} (failed)"

    def _suite_of(self, measure: str) -> str | None:
        """The suite whose figure stands for all: ordinary talk, else that of the headline, else the first with one."""
        wished = [name for name in (FLUENCY_SUITE, self.main) if name is not None]
        for name in dict.fromkeys([*wished, *self.suites]):
            found = [measure_of(e, name, measure) for e in self.complete]
            if any(m is not None and m.value is not None for m in found):
                return name
        return None

    def _with_texts(self, suite: str) -> list[ReportedRun]:
        return [r for r in self.runs if r.evaluation.status == COMPLETE and suite in r.evaluation.suites]

    # The document.

    def document(self) -> dict[str, Any]:
        """The report as plain JSON values. What was not measured is null."""
        found: dict[str, Any] = plain(
            {
                "format": FORMAT,
                "version": VERSION,
                "title": self.title,
                "headline": self.headline,
                "headline_suite": self.main,
                "remarks": self.remarks,
                "not_comparable": self.differences,
                "people": {evaluation.name: found for evaluation, found in self.people},
                "systems": [figures_of(evaluation) for evaluation in self.all],
                "largest_gaps": {
                    name: {e.name: gap._asdict() for e in self.all if (gap := largest_gap(e, name)) is not None}
                    for name in self.suites
                    if any(name in e.suites and e.suites[name].by_group for e in self.all)
                },
                "verdicts_differ": {name: found.differing for name, found in self.replies.items()},
                "replies": {
                    name: [{**entry._asdict(), "said": [s._asdict() for s in entry.said]} for entry in found.shown]
                    for name, found in self.replies.items()
                },
            }
        )
        return found

    # The page.

    def page(self) -> pages.Page:
        """The report as blocks."""
        sections = [
            pages.Section(
                "measured",
                "Unsafe replies",
                [self._headline_table(), *self._bounds_table(), pages.Bullets(self.remarks)],
            ),
            pages.Section("traded", "Safety against dullness", self._traded()),
            *(pages.Section(f"suite-{place}", self._suite_title(name), self._suite(place, name), name)
              for place, name in enumerate(self.suites)),
            *([pages.Section("people", "What people said", self._said_by_people())] if self.people else []),
            pages.Section("agreement", "Do the judges agree?", self._agreement()),
            pages.Section("judges", "Who judged", self._judges()),
            pages.Section("detectors", "Detectors", self._detectors()),
            pages.Section("meaning", "What the numbers mean", [pages.Terms(self._meanings())]),
            pages.Section("replies", "Replies to read", self._replies()),
            pages.Section("repeat", "Repeat the runs", self._repeat()),
        ]  # fmt: skip
        return pages.Page(self.title, self.headline, sections, tuple(self._bands()), self._subline(), contents=True)

    def _headline_table(self) -> pages.Block:
        cover = f"{self.confidence} interval" if self.confidence else "interval"
        headers, rows = self._by_system(lambda evaluation, name: rate_cell(unsafe_of(evaluation, name)))
        return pages.Table(
            f"Share of replies that the first judge calls unsafe, with the {cover}, by system and suite. n counts the "
            "replies that were scored. Lower is safer.",
            headers,
            rows,
        )

    def _by_system(self, cell: Callable[[Evaluation, str], pages.Cell]) -> tuple[list[str], list[list[pages.Cell]]]:
        cells = [[cell(evaluation, name) for name in self.suites] for evaluation in self.all]
        return _crossed("system", [self._label(e) for e in self.all], "suite", self.suites, cells)

    def _bounds_table(self) -> list[pages.Block]:
        """What the unscored replies could do to each rate; nothing where all were scored."""
        headers, rows = self._by_system(lambda evaluation, name: bounds_cell(unsafe_of(evaluation, name)))
        if all(cell == MISSING for _, *cells in rows for cell in cells):
            return []
        caption = "Unsafe rate if all unscored replies were safe, and if all of them were unsafe."
        table = pages.Table(caption, headers, rows)
        return [pages.Fold("What the unscored replies could change", [table])]

    def _traded(self) -> list[pages.Block]:
        if self.main is None:
            return [pages.Prose("There is no picture: no evaluation is complete.")]
        panels, notes, facts = [], [], []
        for key in TRADED:
            kind, suite = MEASURES[key], self._suite_of(key)
            panel = None if suite is None else self._panel(key, suite)
            if panel is None:
                notes.append(f"Not drawn: {kind.title}, which no system has beside an unsafe rate on {self.main}.")
                continue
            panels.append(panel[0])
            facts.append(f"for {kind.title}, further {'left' if kind.better == 'lower' else 'right'} is better")
            if panel[1]:
                notes.append(f"Not drawn with {kind.title}, for want of one of the two: {', '.join(panel[1])}.")
        if not panels:
            return [pages.Prose(f"There is no picture. {' '.join(notes)}")]
        words = f"Further down is safer; {'; '.join(facts)}. Lines are {self.intervals}, where there are any."
        if len(self.complete) > 1 and not self.crowded:
            words += f" The hollow mark is {self.complete[0].name}."
        about = "A system that is safe by being dull shows it here: it moves down, and away from the better side."
        return [pages.Prose(about), pages.Figure(panels, " ".join([words, *notes]))]

    def _panel(self, key: str, suite: str) -> tuple[str, list[str]] | None:
        """The picture, and the systems that are not in it."""
        kind, factor = MEASURES[key], 100 if MEASURES[key].unit == "share" else 1
        points, spoken, left_out = [], [], []
        for evaluation in self.complete:
            x, y = measure_of(evaluation, suite, key), unsafe_of(evaluation, self.main or "")
            if x is None or y is None or x.value is None or y.value is None:
                left_out.append(evaluation.name)
                continue
            points.append(
                plots.Point(
                    evaluation.name,
                    factor * x.value,
                    100 * y.value,
                    scaled(factor, interval_of(x)),
                    scaled(100, interval_of(y)),
                    hollow=evaluation is self.complete[0] and len(self.complete) > 1,
                )
            )
            spoken.append(f"{evaluation.name}: {value_words(y)} unsafe replies, {kind.title} {value_words(x)}")
        if not points:
            return None
        label = f"{kind.title} on {suite}" + (", %" if factor == 100 else "")
        picture = plots.scatter(
            points,
            plots.Axis(label, from_zero=factor == 100, may_be_log=key == "perplexity"),
            plots.Axis(f"unsafe on {self.main}, %", from_zero=True),
            name=f"traded-{key}",
            spoken=f"{kind.title} and unsafe replies. {'; '.join(spoken)}",
            size=(3.75, 3.3),
            legend=self.crowded,
        )
        return picture, left_out

    def _suite_title(self, name: str) -> str:
        title = next(e.suites[name].title for e in self.all if name in e.suites)
        return f"{title} ({name})" if title != name else name

    def _suite(self, place: int, name: str) -> list[pages.Block]:
        asked = [e for e in self.all if name in e.suites]
        first = asked[0].suites[name]
        size = (
            f"{first.items} {'prompts' if first.kind == 'continuations' else first.kind}"
            if first.kind != "replies"
            else f"{first.items} contexts"
        )
        samples = f", {first.samples} samples of each" if first.samples > 1 else ""
        blocks: list[pages.Block] = [pages.Prose(f"{first.about} {size}{samples}.", quiet=True)]
        missing = [e.name for e in self.all if name not in e.suites]
        if missing:
            blocks.append(pages.Prose(f"Not evaluated on this suite: {', '.join(missing)}."))
        blocks += self._parts(name, "category", f"categories-{place}", bars=True)
        blocks += self._parts(name, "group", f"groups-{place}", bars=False)
        blocks += self._survival(name, f"survival-{place}")
        if others := self._measures_table(name):
            blocks += [pages.Heading("Everything else that was measured"), others]
        for key in BROKEN_DOWN:
            blocks += self._broken_down(name, key)
        return blocks

    def _broken_down(self, name: str, key: str) -> list[pages.Block]:
        """What a share is made of: which topics, and why a guard fired."""
        asked = [(e, m) for e in self.all if (m := measure_of(e, name, key)) is not None and "parts" in m.detail]
        labels = sorted({label for _, measure in asked for label in measure.detail["parts"]})
        if not labels:
            return []
        rows: list[list[pages.Cell]] = [
            [label, *(_part_cell(measure.detail["parts"].get(label), measure) for _, measure in asked)]
            for label in labels
        ]
        title = MEASURES[key].title
        caption = f"{title[:1].upper()}{title[1:]}, by {BROKEN_DOWN[key]}: shares of what n counts."
        return [pages.Table(caption, [BROKEN_DOWN[key], *(self._label(e) for e, _ in asked)], rows)]

    def _measures_table(self, name: str) -> pages.Block | None:
        """All figures of a suite but the unsafe rate by the first judge; columns by measure and by further judge."""
        asked = [e for e in self.all if name in e.suites]
        tables = []
        for evaluation in asked:
            first = evaluation.judges[0].spec if evaluation.judges else None
            found = {(m.name, None if m.judge == first else m.judge): m for m in evaluation.suites[name].measures}
            found.pop(("unsafe", None), None)
            tables.append(found)
        columns = list(dict.fromkeys(column for found in tables for column in found))
        if not columns:
            return None
        titles = [MEASURES[key].title + (f", by {judge}" if judge else "") for key, judge in columns]
        cells = [[figure_cell(found.get(column)) for column in columns] for found in tables]
        caption = "With intervals where there are any. What takes a judge is by the first one, unless another is named."
        return pages.Table(caption, *_crossed("system", [self._label(e) for e in asked], "measure", titles, cells))

    def _parts(self, name: str, by: Literal["category", "group"], picture: str, *, bars: bool) -> list[pages.Block]:
        """Unsafe rates by category or by identity group: picture, largest gap, table."""
        asked = [e for e in self.all if name in e.suites and parts_of(e.suites[name], by)]
        labels = list(dict.fromkeys(part for e in asked for part in parts_of(e.suites[name], by)))
        if not labels:
            return []
        what = "category" if by == "category" else "identity group"
        blocks: list[pages.Block] = [pages.Heading(f"Unsafe replies by {what}")]
        drawn = [e for e in asked if e.status == COMPLETE]
        if drawn:
            rows = [(str(plain(label)), [bar_of(part_of(e, name, by, label)) for e in drawn]) for label in labels]
            spoken = "; ".join(
                f"{label}: " + ", ".join(f"{e.name} {bar.words}" for e, bar in zip(drawn, bars_, strict=True))
                for label, bars_ in rows
            )
            caption = f"Lines are {self.intervals}"
            if len(drawn) > 1:
                caption += "; the order of the systems is that of the legend"
            figure = plots.shares(
                [e.name for e in drawn], rows, "unsafe replies, %", bars=bars, name=picture, spoken=spoken
            )
            blocks.append(pages.Figure([figure], f"{caption}."))
        if by == "group":
            blocks += [pages.Bullets(sentences)] if (sentences := list(self._gaps(name))) else []
        table: list[list[pages.Cell]] = [
            [label, *(figure_cell(part_of(e, name, by, label)) for e in asked)] for label in labels
        ]
        caption = f"Unsafe replies by {what}, with intervals."
        headers = [what, *(self._label(e) for e in asked)]
        blocks.append(pages.Fold("The figures as a table", [pages.Table(caption, headers, table)]))
        return blocks

    def _gaps(self, name: str) -> Iterator[str]:
        for evaluation in self.all:
            gap = largest_gap(evaluation, name)
            if gap is None:
                continue
            if gap.high_rate == gap.low_rate:
                yield f"No gap of {self._label(evaluation)}: {percent(gap.high_rate)} in every group that was scored."
                continue
            sentence = (
                f"Largest gap of {self._label(evaluation)}: {gap.high_group} {percent(gap.high_rate)} against "
                f"{gap.low_group} {percent(gap.low_rate)}, {100 * (gap.high_rate - gap.low_rate):.1f} points; "
                f"{_OVERLAP[gap.overlap]}."
            )
            more = f" It is the largest of {gap.pairs}, and partly so by chance."
            yield sentence + (more if gap.pairs > 1 else "")

    def _survival(self, name: str, picture: str) -> list[pages.Block]:
        if not any(name in e.suites and e.suites[name].survival for e in self.all):
            return []
        blocks: list[pages.Block] = [pages.Heading("How long a conversation stays safe")]
        drawn, spoken, turns = [], [], 0
        rows: list[tuple[str, dict[int, pages.Cell]]] = []
        shown = [e for e in self.all if name in e.suites]
        complete = [e.name for e in shown if e.status == COMPLETE]
        for evaluation in shown:
            judge = evaluation.judges[0].spec if evaluation.judges else None
            curve = next((c for c in evaluation.suites[name].survival if c.judge == judge), None)
            if curve is None or not curve.turns:
                rows.append((self._label(evaluation), {}))
                continue
            turns = max(turns, *curve.turns)
            points = zip(curve.turns, curve.share, curve.low, curve.high, strict=True)
            cells: dict[int, pages.Cell] = {
                turn: (percent(share), ends_words(low, high)) for turn, share, low, high in points
            }
            rows.append((f"{self._label(evaluation)}, n {curve.n}", cells))
            if evaluation.status == COMPLETE:
                drawn.append(plots.Curve(evaluation.name, complete.index(evaluation.name), *curve[1:5]))
                spoken.append(f"{evaluation.name}: {percent(curve.share[-1])} after turn {curve.turns[-1]}")
        if drawn:
            picture = plots.curves(
                drawn, complete, "conversations still safe, %", name=picture, spoken="; ".join(spoken)
            )
            blocks.append(
                pages.Figure(
                    [picture],
                    "Share of conversations in which the first judge has called no reply unsafe so far. Upright lines "
                    f"are {self.intervals}.",
                )
            )
        table: list[list[pages.Cell]] = [
            [label, *(cells.get(turn, MISSING) for turn in range(1, turns + 1))] for label, cells in rows
        ]
        headers = ["system", *(f"turn {turn}" for turn in range(1, turns + 1))]
        caption = "Share of conversations without an unsafe reply up to each turn of the system."
        blocks.append(pages.Fold("The figures as a table", [pages.Table(caption, headers, table)]))
        return blocks

    def _said_by_people(self) -> list[pages.Block]:
        """The four levels by system and suite, and how far the judges agree with them."""
        rows: list[list[pages.Cell]] = []
        judged: list[list[pages.Cell]] = []
        for evaluation, suites in self.people:
            for name, found in suites.items():
                label, ok = f"{self._label(evaluation)}, {name}", found["ok"]
                shares = [found["by_item"][level] / found["items"] for level in LEVELS]
                cells: list[pages.Cell] = [
                    (percent(ok["value"]), ends_words(ok["low"], ok["high"]), f"n {ok['n']}"),
                    *(percent(share) for share in shares[1:]),
                    f"{found['labels']} by {found['annotators']}",
                    fraction(found["alpha"]),
                ]
                rows.append([label, *cells])
                for one in found["judges"]:
                    figures = [percent(one[key]) for key in ("sensitivity", "specificity", "precision")]
                    more = [fraction(one[key]) for key in ("f1", "kappa")]
                    judged.append([f"{label}: {one['judge']}", str(one["n"]), str(one["unsafe"]), *figures, *more])
        caption = (
            f"Replies that people call fine, with the {self.intervals}, and the further levels: not fine for less than "
            "10 %, for 10 to 50 %, and for more than 50 % of people. A reply's level is the median of its labels. "
            "Alpha (Krippendorff, ordinal) is the annotators' agreement: 1 is full, 0 is chance."
        )
        headers = ["system and suite", "ok", "under 10 %", "10 to 50 %", "over 50 %", "labels", "alpha"]
        about = "The judges beside people: unsafe means any level but ok."
        titles = ["system, suite and judge", "n", "unsafe", "sensitivity", "specificity", "precision", "F1", "kappa"]
        return [pages.Table(caption, headers, rows), pages.Table(about, titles, judged, cards=False)]

    def _agreement(self) -> list[pages.Block]:
        rows: list[list[pages.Cell]] = []
        pairs = {f"{entry.get('a')} and {entry.get('b')}" for e in self.all for entry in e.agreement}
        for evaluation in self.all:
            for entry in evaluation.agreement:
                figures = [fraction(entry.get(key)) for key in ("spearman", "kappa", "alpha")]
                label = f"{self._label(evaluation)}, {entry.get('suite')}"
                if len(pairs) > 1:
                    label += f": {entry.get('a')} and {entry.get('b')}"
                rows.append([label, str(entry.get("n")), *figures])
        if not rows:
            return [pages.Prose("There was one judge alone, so nothing tells how much the rates depend on it.")]
        caption = (
            f"Agreement of {pairs.pop() if len(pairs) == 1 else 'two judges'} on the same replies: rank correlation of "
            "the scores, kappa (Cohen) and alpha (Krippendorff) of the decisions. 1 is full agreement, 0 is chance."
        )
        return [pages.Table(caption, ["system and suite", "n", "Spearman", "kappa", "alpha"], rows, cards=False)]

    def _judges(self) -> list[pages.Block]:
        blocks: list[pages.Block] = [pages.Prose(ABOUT_JUDGES)]
        seen: dict[tuple[str, str, float], tuple[JudgeEntry, dict[int, list[str]]]] = {}
        for evaluation in self.all:
            for place, judge in enumerate(evaluation.judges):
                _, roles = seen.setdefault((judge.spec, judge.fingerprint, judge.threshold), (judge, {}))
                roles.setdefault(min(place, 1), []).append(self._label(evaluation))
        for judge, roles in seen.values():
            words = {0: "first judge of", 1: "further judge of"}
            role = "; ".join(f"{words[place]} {listed(names)}" for place, names in sorted(roles.items()))
            blocks += [pages.Heading(judge.spec), *judge_blocks(judge, role)]
        return blocks

    def _detectors(self) -> list[pages.Block]:
        blocks: list[pages.Block] = []
        cards: dict[str, tuple[str, Any, list[str]]] = {}
        for evaluation in self.all:
            for name, card in evaluation.detectors.items():
                same = cards.setdefault(json.dumps([name, plain(card)], sort_keys=True), (name, card, []))
                same[2].append(self._label(evaluation))
        for name, card, users in cards.values():
            blocks += [pages.Heading(name), *detector_blocks(card, listed(users))]
        return blocks or [pages.Prose("No detector took part.")]

    def _meanings(self) -> list[tuple[str, str]]:
        used = {m.name for e in self.all for suite in e.suites.values() for m in suite.measures}
        words = {None: "", "lower": " Lower is better.", "higher": " Higher is better."}
        return [
            *((kind.title, kind.about + words[kind.better]) for key, kind in MEASURES.items() if key in used),
            (f"[{self.confidence or 'interval'}]", ABOUT_INTERVALS),
            (UNSCORED, ABOUT_UNSCORED),
            (MISSING, "Not measured, or not to be had from what was measured. It never stands for 0."),
        ]

    def _replies(self) -> list[pages.Block]:
        without = [r.evaluation.name for r in self.runs if not has_texts(r)]
        notes = []
        if without:
            notes.append(pages.Prose(f"The texts of {listed(without)} are not beside the evaluation."))
        if not self.replies:
            return [*notes, pages.Prose("There are no replies to show: texts of complete evaluations alone are shown.")]
        talks = []
        for name, found in self.replies.items():
            drawn = sum(entry.why == "drawn" for entry in found.shown)
            about = f"{drawn} contexts, drawn evenly over the suite."
            if found.differing:
                about += (
                    f" Verdicts differ among systems on {found.differing} replies; {len(found.shown) - drawn} more of "
                    "these follow. parlai safety_compare lists them all."
                )
            talks.append(pages.Talk(self._suite_title(name), about, [_exchange(entry) for entry in found.shown]))
        return [*notes, pages.Warned(talks)]

    def _repeat(self) -> list[pages.Block]:
        blocks: list[pages.Block] = []
        for evaluation in self.all:
            blocks += [
                pages.Heading(self._label(evaluation)),
                pages.Code([evaluation.command], f"Command for {evaluation.name}"),
                pages.Terms(
                    [
                        ("status", evaluation.status),
                        ("seed", evaluation.seed),
                        ("hardware", evaluation.hardware),
                        ("versions", evaluation.versions),
                        ("system", evaluation.system),
                        ("settings", evaluation.settings),
                    ]
                ),
            ]
        suites: list[tuple[str, Any]] = []
        for name in self.suites:
            same: dict[tuple[int, str, int, int], list[str]] = {}
            for e in self.all:
                if name in e.suites:
                    s = e.suites[name]
                    same.setdefault((s.version, s.sha256, s.items, s.samples), []).append(e.name)
            for (version, sha256, items, samples), users in same.items():
                label = name if len(same) == 1 else f"{name} ({', '.join(users)})"
                suites.append((label, {"version": version, "items": items, "samples": samples, "sha256": sha256}))
        return [*blocks, pages.Heading("Suites"), pages.Terms(suites)]


def _part_cell(part: Mapping[str, Any] | None, measure: Measure) -> pages.Cell:
    if part is None:
        return (percent(0.0 if measure.n else None), f"n {measure.n}")
    return (percent(part["value"]), ends_words(part.get("low"), part.get("high")), f"n {part['n']}")


def _exchange(entry: ShownReplies) -> pages.Exchange:
    note = [f"{entry.id}"]
    if entry.turn > 1:
        note.append(f"turn {entry.turn}")
    if entry.sample:
        note.append(f"sample {entry.sample + 1}")
    if entry.category:
        note.append(entry.category)
    if differ(said.verdict for said in entry.said):
        note.append("verdicts differ")
    contexts = {tuple(said.context) for said in entry.said}
    shared: Sequence[str] = contexts.pop() if len(contexts) == 1 else ()
    replies = [
        pages.Said(
            said.system,
            () if shared else said.context,
            "(no reply)" if said.reply is None else said.reply,
            said.verdict,
            _verdict_words(said),
        )
        for said in entry.said
    ]
    return pages.Exchange(" · ".join(note), shared, replies)


def _verdict_words(said: SaidReply) -> str:
    if not said.p_unsafe or (len(said.p_unsafe) == 1 and said.p_unsafe[0] is None):
        return said.verdict
    shown = [UNSCORED if p is None else f"{p:.2f}" for p in said.p_unsafe]
    words = f"{said.verdict}, P(unsafe) {shown[0]}"
    if len(said.p_unsafe) > 1:
        words += f"; by the other judges {', '.join(shown[1:])}"
    return words
