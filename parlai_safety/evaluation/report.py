"""One report of several systems: a table for the terminal, Markdown, JSON and one self-contained HTML page.

A report shows what was measured and by whom: each unsafe rate stands with its interval, its n and the number of
unscored replies, and the judge stands with its own error rates. A value that is missing reads "unscored" or "n/a" and
never 0. The page asks the network for nothing and works without scripts. Left out: measuring anything, comparing
systems reply by reply, and correcting a rate for the errors of its judge; the report says that rates are uncorrected.
"""

from __future__ import annotations

import html
import io
import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.statistics import Interval, intervals_overlap
from parlai_safety.files import write_json, write_text

UNSCORED = "unscored"
MISSING = "n/a"

# Colours that no stylesheet can reach are drawn first and exchanged for CSS colours in the finished SVG.
_INK, _ACCENT, _PAPER = "#010203", "#040506", "#070809"
_CSS_COLOURS = {_INK: "currentColor", _ACCENT: "var(--accent)", _PAPER: "var(--paper)"}

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
    document, page, text = to_json(report), to_html(report), to_markdown(report)
    write_json(files.json, document)
    write_text(files.html, page)
    write_text(files.markdown, text)
    return files


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
    document: dict[str, Any] = _plain(
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
        colalign=("left", *["right"] * (len(_COLUMNS) - 1)),
    )
    return f"{table}\n\n{_judge_line(report)}"


def markdown_table(report: Report) -> str:
    """The table of all systems in Markdown. No trailing newline."""
    from tabulate import tabulate

    return tabulate(
        [[_markdown(cell) for cell in row] for row in _rows(report)],
        headers=_headers(report),
        tablefmt="pipe",
        disable_numparse=True,
        colalign=("left", *["right"] * (len(_COLUMNS) - 1)),
    )


def to_markdown(report: Report) -> str:
    """The report as Markdown, without the examples: Markdown has no place to hide them behind a warning."""
    judge = [f"- {key}: {_markdown(value)}" for key, value in _judge_card(report)]
    run = [("seed", report.seed), ("hardware", report.hardware), ("versions", report.versions), ("data", report.data)]
    parts = [
        f"# {_markdown(report.title)}",
        _markdown(headline(report)),
        markdown_table(report),
        "\n".join(f"- {_markdown(sentence)}" for sentence in [*remarks(report), *report.notes]),
        "## Judge",
        "\n".join(judge),
        "## Repeat the run",
        "\n".join(["```sh", *report.commands, "```"]) if report.commands else "",
        "\n".join(f"- {key}: {_markdown(_in_words(value))}" for key, value in run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_html(report: Report) -> str:
    """The report as one HTML page that asks the network for nothing."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("parlai_safety.evaluation", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    picture = plot_svg(report)
    return environment.get_template("report.html.j2").render(
        report=report,
        headline=_unbroken(headline(report)),
        remarks=[_unbroken(sentence) for sentence in remarks(report)],
        headers=_headers(report),
        rows=_rows(report),
        judge=_judge_card(report),
        percent=_unbroken(f"{100 * report.confidence:g} %"),
        # The only markup that is not escaped: matplotlib wrote it, and escaped the names in it.
        picture=Markup(picture) if picture else None,
        left_out=[system.name for system in report.systems if not _drawable(system)],
        plain=_plain,
        in_words=_in_words,
    )


def headline(report: Report) -> str:
    """The result in plain words: the lowest unsafe rate against the rate of the first system, and at what price."""
    base, best = report.systems[0], _best(report)
    if len(report.systems) == 1:
        return f"{base.name}: {_unsafe_words(base)}."
    if best is None:
        return f"{base.name}: {_unsafe_words(base)}. No other system could be scored."
    if base.unsafe_rate is None:
        return f"{best.name}: {_unsafe_words(best)}. {base.name} is unscored, so there is nothing to compare with."
    assert best.unsafe_rate is not None and best.unsafe_interval is not None and base.unsafe_interval is not None
    if best.unsafe_rate >= base.unsafe_rate:
        return f"No system gives fewer unsafe replies than {base.name}, with {_percent(base.unsafe_rate)}."
    words = f"{best.name}: {_unsafe_words(best)} against {_percent(base.unsafe_rate)} of {base.name}."
    if intervals_overlap(Interval(*best.unsafe_interval), Interval(*base.unsafe_interval)):
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
                ("perplexity", "perplexity", _number),
                ("F1", "f1", _share),
                ("distinct-2", "distinct_2", _share),
                ("canned replies", "canned_rate", _percent),
            )
        ]
        sentences.append(f"{best.name} against {base.name}: {', '.join(parts)}.")
    sentences.extend(
        f"{system.name}: unscored, with {system.n} of {system.n + system.unscored} replies scored."
        for system in report.systems
        if system.unsafe_rate is None
    )
    bounds = [_unscored_bounds(system) for system in report.systems if system.unscored]
    if any(bounds):
        sentences.append(
            f"Unscored replies are in no rate. Unsafe rate if all of them were safe, and if all were unsafe: "
            f"{'; '.join(filter(None, bounds))}."
        )
    sentences.append(
        "Unsafe rates are counted by the judge and not corrected for its errors; intervals cover sampling error alone."
    )
    return sentences


def _unscored_bounds(system: SystemResult) -> str | None:
    if system.unsafe_rate is None:
        return None
    total, unsafe = system.n + system.unscored, system.unsafe_rate * system.n
    low, high = _percent(unsafe / total), _percent((unsafe + system.unscored) / total)
    return f"{system.name} {low} and {high} ({system.unscored} of {total} unscored)"


def _best(report: Report) -> SystemResult | None:
    """The system after the first one with the lowest unsafe rate, if any of them could be scored."""
    scored = (system for system in report.systems[1:] if system.unsafe_rate is not None)
    return min(scored, key=lambda system: _known(system.unsafe_rate), default=None)


def plot_svg(report: Report) -> str | None:
    """Unsafe rate over perplexity as an SVG element for an HTML page, or None where no system has both.

    The colours are CSS ones: the text colour of the page, --accent and --paper. The same report gives the same bytes.
    """
    points = [system for system in report.systems if _drawable(system)]
    if not points:
        return None
    import matplotlib
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink = {key: _INK for key in ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color")}
    settings = {**ink, "svg.hashsalt": "parlai_safety", "svg.fonttype": "none", "font.size": 10, "axes.linewidth": 0.7}
    stream = io.StringIO()
    # The reader's own matplotlib style must not reach the report, nor ours anything else that is drawn.
    with matplotlib.style.context(["default", settings], after_reset=True), warnings.catch_warnings():
        # Text stays text: a letter that the measuring font lacks is drawn by the browser's own font.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(4.5, 3.7), layout="constrained")
        FigureCanvasSVG(figure)
        _draw(figure, points, base=report.systems[0])
        figure.savefig(
            stream, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]  # the XML declaration and the DOCTYPE have no place inside HTML
    for sentinel, colour in _CSS_COLOURS.items():
        svg = svg.replace(sentinel, colour)
    svg = svg.replace("*{", ".plot svg *{", 1)
    spoken = "; ".join(f"{s.name}: {_unsafe_words(s)}, perplexity {_number(s.perplexity)}" for s in points)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(spoken)}" ', 1)


def _drawable(system: SystemResult) -> bool:
    return system.unsafe_rate is not None and system.perplexity is not None


def _draw(figure: Any, points: Sequence[SystemResult], base: SystemResult) -> None:
    axes = figure.add_subplot()
    perplexities = [_known(system.perplexity) for system in points]
    logarithmic = max(perplexities) > 10 * min(perplexities)
    axes.set_xlabel("perplexity on ordinary talk" + (", log scale" if logarithmic else ""))
    axes.set_ylabel("unsafe replies, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    marks = []
    for system in points:
        x, y = _known(system.perplexity), 100 * _known(system.unsafe_rate)
        low, high = (100 * end for end in system.unsafe_interval or ())
        axes.plot([x, x], [low, high], color=_ACCENT, linewidth=1.4, solid_capstyle="butt", clip_on=False)
        filling = _PAPER if system is base else _ACCENT
        axes.plot([x], [y], "o", color=_ACCENT, markersize=6, markerfacecolor=filling, clip_on=False, zorder=3)
        marks.append((x, low, y, high))
    axes.margins(x=0.12)
    axes.set_ylim(0, max(5.0, 1.12 * max(high for *_, high in marks)))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    _label(axes, [system.name for system in points], marks)


def _label(axes: Any, names: Sequence[str], marks: Sequence[tuple[float, float, float, float]]) -> None:
    """Write each name beside its mark where it covers the least of what is drawn already."""
    bounds = axes.get_window_extent()
    pixel = axes.figure.dpi / 72  # one point
    to_pixels = axes.transData.transform
    taken = []
    for x, low, y, high in marks:
        (left, bottom), (_, middle), (_, top) = to_pixels([(x, low), (x, y), (x, high)])
        taken.append((left - 2 * pixel, bottom - 2 * pixel, left + 2 * pixel, top + 2 * pixel))
        taken.append((left - 4 * pixel, middle - 4 * pixel, left + 4 * pixel, middle + 4 * pixel))
    for name, (x, _, y, _) in zip(names, marks, strict=True):
        centre_x, centre_y = to_pixels((x, y))
        best: tuple[float, tuple[float, float], str] | None = None
        text = axes.annotate(name, (x, y), xytext=(0, 0), textcoords="offset points", va="center", parse_math=False)
        width = 1.06 * text.get_window_extent().width  # the browser's font may be wider than the measured one
        if width > bounds.width:
            text.set_fontsize(text.get_fontsize() * bounds.width / width)
            width = bounds.width
        half = 6 * pixel
        for rise in (0, 9, -9, 15, -15, 22, -22, 30, -30, 38, -38, 48, -48, 60, -60):
            for side, align in ((8, "left"), (-8, "right"), (0, "center")):
                if align == "center" and abs(rise) < 15:
                    continue
                before = {"left": 0.0, "right": width, "center": width / 2}[align]
                wished = centre_x + side * pixel - before
                start = max(bounds.x0, min(wished, bounds.x1 - width))
                middle = centre_y + rise * pixel
                box = (start, middle - half, start + width, middle + half)
                outside = _area(box) - _shared(box, tuple(bounds.extents))
                offset = ((start + before - centre_x) / pixel, rise)
                cost = 1000 * outside + 10 * sum(_shared(box, other) for other in taken) + abs(rise) * pixel**2
                if best is None or cost < best[0]:
                    best, chosen = (cost, offset, align), box
        assert best is not None
        text.set(ha=best[2])
        text.set_position(best[1])
        taken.append(chosen)
        if abs(best[1][1]) > 15:
            axes.annotate(
                "",
                (x, y),
                xytext=best[1],
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": _INK, "alpha": 0.5, "linewidth": 0.5, "shrinkB": 4},
            )


def _area(box: tuple[float, float, float, float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _shared(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def _known(value: float | None) -> float:
    assert value is not None
    return float(value)


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f} %"


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _number(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.2f}" if value < 10_000 else f"{value:.2e}"


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
    return f"{_percent(system.unsafe_rate)} [{low:.1f}, {high:.1f}]"


def _unsafe_words(system: SystemResult) -> str:
    return UNSCORED if system.unsafe_rate is None else f"{_percent(system.unsafe_rate)} unsafe replies"


_COLUMNS: tuple[tuple[str, Callable[[SystemResult], str]], ...] = (
    ("system", lambda system: system.name),
    ("unsafe", _unsafe),
    ("n", lambda system: str(system.n)),
    ("unscored", lambda system: str(system.unscored)),
    ("perplexity", lambda system: _number(system.perplexity)),
    ("F1", lambda system: _share(system.f1)),
    ("distinct-2", lambda system: _share(system.distinct_2)),
    ("canned", lambda system: _percent(system.canned_rate)),
    ("time", lambda system: _duration(system.seconds)),
)


def _headers(report: Report) -> list[str]:
    interval = f"[{100 * report.confidence:g} %]"
    return [f"{name} {interval}" if name == "unsafe" else name for name, _ in _COLUMNS]


def _rows(report: Report) -> list[list[str]]:
    return [[show(system) for _, show in _COLUMNS] for system in report.systems]


def _judge_card(report: Report) -> list[tuple[str, str]]:
    keys = ["spec", *_JUDGE_CARD, *(key for key in report.judge if key not in ("spec", *_JUDGE_CARD))]
    names = {"spec": "judge", "auc": "AUC"}
    return [(names.get(key, key.replace("_", " ")), _in_words(report.judge.get(key))) for key in keys]


def _judge_line(report: Report) -> str:
    auc, sensitivity, specificity = (_in_words(report.judge.get(key)) for key in ("auc", "sensitivity", "specificity"))
    return (
        f"judge {report.judge['spec']}: AUC {auc}, sensitivity {sensitivity}, specificity {specificity}; "
        "rates are not corrected for its errors"
    )


def _unbroken(text: str) -> str:
    """The text with each per cent sign tied to its number, so that no line of the page begins with one."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _in_words(value: Any) -> str:
    """A value of the judge's card, of the data or of the extra measures on one line."""
    value = _plain(value)
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        parts = ((key, part, _in_words(part)) for key, part in value.items())
        return ", ".join(
            f"{key} ({words})" if isinstance(part, dict) else f"{key} {words}" for key, part, words in parts
        )
    if isinstance(value, list):
        return ", ".join(_in_words(part) for part in value) or "none"
    return str(value)


def _plain(value: Any) -> Any:
    """The value in the types that JSON has, with None for a float that is not finite."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        # Control characters and halves of characters, which a model may say, have no place in a page or in UTF-8.
        return "".join("\ufffd" if _unprintable(character) else character for character in value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (bytes, bytearray)):
        return [_plain(part) for part in value]
    raise TypeError(f"{value!r} of type {type(value).__name__} has no form in JSON")


def _unprintable(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"


def _markdown(text: str) -> str:
    """Text on one line, in which no character ends a table cell or starts a tag."""
    return re.sub(r"([|<])", r"\\\1", " ".join(text.split()))
