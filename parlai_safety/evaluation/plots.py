"""Pictures of a report: SVG text for an HTML page, in the page's own colours, the same bytes for the same figures.

Matplotlib draws; what it wrote is then fitted to the page. Colours that no stylesheet can reach are drawn as sentinels
and exchanged for CSS ones, so that a picture follows light, dark and print. Text stays text. Series are told apart by
the shape and the filling of their marks and by a legend, never by colour alone. Left out: anything interactive, and
any choice of what to draw.
"""

from __future__ import annotations

import html
import io
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_INK, _ACCENT, _PAPER = "#010203", "#040506", "#070809"
_CSS_COLOURS = {_INK: "currentColor", _ACCENT: "var(--accent)", _PAPER: "var(--paper)"}

# The place of a series in the report gives its mark: hollow and filled in turn, then the next shape.
_SHAPES = ("o", "s", "^", "D", "v", "P")
# Lines only: a dotted hatch is drawn dot by dot, and takes half a megabyte a picture.
_HATCHES = (None, "", "//////", "||||||", "xxxxxx", "++++++")
_DASHES = ("-", "-", "--", "--", ":", ":")

_WIDTH = 281.0  # points; about 1.3 CSS pixels each on a phone
_LINE = 12.5
_CHARACTERS = 48

Ends = tuple[float, float]


class Point(NamedTuple):
    """A mark of a scatter plot with its intervals, in the units of the axes."""

    name: str
    x: float
    y: float
    x_ends: Ends | None = None
    y_ends: Ends | None = None
    hollow: bool = False


class Axis(NamedTuple):
    """What an axis says, whether it starts at 0, and whether a wide range of it may be drawn on a log scale."""

    label: str
    from_zero: bool = False
    may_be_log: bool = False


class Bar(NamedTuple):
    """A share in [0, 1] with its interval; `words` stands at the end of its line. None draws no bar, only the words."""

    value: float | None
    ends: Ends | None
    words: str


class Curve(NamedTuple):
    """Shares in [0, 1] over whole-numbered turns, with intervals."""

    name: str
    place: int
    turns: Sequence[int]
    share: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def scatter(
    points: Sequence[Point],
    x: Axis,
    y: Axis,
    *,
    name: str,
    spoken: str,
    size: Ends = (4.5, 3.7),
    font: int = 10,
    legend: bool = False,
) -> str:
    """Points with intervals in both directions, each with its name beside it.

    Args:
        points: at least one.
        x: the horizontal axis.
        y: the vertical axis, which starts at 0 and reaches at least 5.
        name: of the picture, unique on the page.
        spoken: the picture in words.
        size: width and height in inches.
        font: size of the letters in points.
        legend: name the points in a legend, by the shape of their marks, for names that are many or long.

    Returns:
        An SVG element.
    """
    if legend:
        size = (_WIDTH / 72, size[1] + _legend_height([point.name for point in points]) / 72)
    return svg(lambda figure: _scatter(figure, points, x, y, legend), name=name, spoken=spoken, size=size, font=font)


def shares(
    names: Sequence[str], rows: Sequence[tuple[str, Sequence[Bar]]], label: str, *, bars: bool, name: str, spoken: str
) -> str:
    """One line a row and series, under the row's name: a bar or a dot with its interval, and the figure in words.

    Args:
        names: S series; the legend is left out where there is one.
        rows: name of the row, and S bars.
        label: of the horizontal axis, in per cent from 0.
        bars: draw bars, else dots.
        name: of the picture, unique on the page.
        spoken: the picture in words.

    Returns:
        An SVG element.
    """
    titled = [(textwrap.wrap(title, _CHARACTERS) or [title], row) for title, row in rows]
    body = _LINE * sum(len(title) + len(row) + 0.7 for title, row in titled)
    top, bottom = _legend_height(names), 36.0
    height = top + body + bottom

    def draw(figure: Any) -> None:
        axes = figure.add_axes((6 / _WIDTH, bottom / height, (_WIDTH - 66) / _WIDTH, body / height))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.yaxis.set_visible(False)
        axes.set_xlabel(label)
        ends = [end for _, row in rows for bar in row for end in (*(bar.ends or ()), bar.value or 0.0)]
        axes.set_xlim(0, 100 * max(0.05, min(1.0, 1.03 * max(ends))))
        axes.set_ylim(body, 0)
        axes.grid(axis="x", color=_INK, alpha=0.15, linewidth=0.6)
        axes.set_axisbelow(True)
        y = 0.0
        for title, row in titled:
            for line in title:
                axes.annotate(
                    line, (0, y + 0.5 * _LINE), (3, 0), textcoords="offset points", va="center", fontweight="bold",
                    parse_math=False,
                )  # fmt: skip
                y += _LINE
            for place, bar in enumerate(row):
                middle = y + 0.5 * _LINE
                _share(axes, place, bar, middle, bars)
                axes.annotate(
                    bar.words, (1.0, middle), (8, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                    va="center", annotation_clip=False, parse_math=False,
                )  # fmt: skip
                y += _LINE
            y += 0.7 * _LINE
        axes.axvline(0, color=_INK, linewidth=0.7)
        _legend(figure, names, height, _bar_glyph if bars else _dot_glyph)

    return svg(draw, name=name, spoken=spoken, size=(_WIDTH / 72, height / 72), font=9)


def curves(drawn: Sequence[Curve], names: Sequence[str], label: str, *, name: str, spoken: str) -> str:
    """Curves that begin at 100 % before the first turn, with the interval at each turn.

    Args:
        drawn: at least one; `place` is the curve's place in `names`.
        names: of all series of the report.
        label: of the vertical axis.
        name: of the picture, unique on the page.
        spoken: the picture in words.

    Returns:
        An SVG element.
    """
    top, height = _legend_height(names), _legend_height(names) + 200.0

    def draw(figure: Any) -> None:
        axes = figure.add_axes((42 / _WIDTH, 36 / height, (_WIDTH - 50) / _WIDTH, (height - top - 42) / height))
        _plain_axes(axes)
        for curve in drawn:
            shift = 0.09 * (curve.place - (len(names) - 1) / 2)
            x = [0.0, *(turn + shift for turn in curve.turns)]
            shape, filling = _mark(curve.place)
            dash = _DASHES[curve.place % len(_DASHES)]
            axes.plot(x, [100.0, *(100 * value for value in curve.share)], dash, color=_ACCENT, linewidth=1.1)
            for at, value, low, high in zip(x[1:], curve.share, curve.low, curve.high, strict=True):
                axes.plot([at, at], [100 * low, 100 * high], color=_ACCENT, linewidth=1.1, solid_capstyle="butt")
                _dot(axes, at, 100 * value, shape, filling)
        last = max(turn for curve in drawn for turn in curve.turns)
        axes.set_xlim(0, last + 0.4)
        axes.set_xticks(range(0, last + 1, max(1, last // 8)))
        axes.set_ylim(0, 104)
        axes.set_xlabel("reply of the system, counted from the first")
        axes.set_ylabel(label)
        _legend(figure, names, height, lambda legend, place, line: _dot_glyph(legend, place, line, dashed=True))

    return svg(draw, name=name, spoken=spoken, size=(_WIDTH / 72, height / 72), font=9)


def svg(draw: Callable[[Any], None], *, name: str, spoken: str, size: Ends, font: int) -> str:
    """What a function draws on a matplotlib figure, as an SVG element for an HTML page.

    Args:
        draw: draws on the figure that it is given.
        name: of the picture; every id in it begins so, and many pictures can stand on one page.
        spoken: for those who do not see it.
        size: width and height in inches.
        font: size of the letters in points.

    Returns:
        The element; its colours are the text colour of the page, --accent and --paper.
    """
    import matplotlib
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink = {key: _INK for key in ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color")}
    own = {"svg.hashsalt": "parlai_safety", "svg.fonttype": "none", "axes.linewidth": 0.7, "hatch.linewidth": 0.7}
    stream = io.StringIO()
    # The reader's own matplotlib style must not reach the report, nor ours anything else that is drawn.
    with (
        matplotlib.style.context(["default", {**ink, **own, "font.size": font}], after_reset=True),
        warnings.catch_warnings(),
    ):
        # Text stays text: a letter that the measuring font lacks is drawn by the browser's own font.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(
            stream, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = stream.getvalue()
    text = text[text.index("<svg") :]  # the XML declaration and the DOCTYPE have no place inside HTML
    for sentinel, colour in _CSS_COLOURS.items():
        text = text.replace(sentinel, colour)
    # Only tags are rewritten: a name that a person wrote may hold the same characters.
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", tag[0]), text)
    text = text.replace("*{", ".plot svg *{", 1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(spoken)}" ', 1)


def _plain_axes(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)


def _scatter(figure: Any, points: Sequence[Point], x: Axis, y: Axis, legend: bool) -> None:
    names = [point.name for point in points]
    if legend:
        height = 72 * figure.get_figheight()
        top = _legend_height(names) + 6
        axes = figure.add_axes((44 / _WIDTH, 38 / height, (_WIDTH - 54) / _WIDTH, (height - top - 38) / height))
        _legend(figure, names, height, _dot_glyph)
    else:
        figure.set_layout_engine("constrained")
        axes = figure.add_subplot()
    _plain_axes(axes)
    values = [point.x for point in points]
    logarithmic = x.may_be_log and max(values) > 10 * min(values)
    axes.set_xlabel(x.label + (", log scale" if logarithmic else ""))
    axes.set_ylabel(y.label)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    for place, point in enumerate(points):
        for across, ends in ((False, point.y_ends), (True, point.x_ends)):
            if ends is not None:
                line = (ends, (point.y, point.y)) if across else ((point.x, point.x), ends)
                axes.plot(*line, color=_ACCENT, linewidth=1.4, solid_capstyle="butt", clip_on=False)
        shape, filling = _mark(place) if legend else ("o", _PAPER if point.hollow else _ACCENT)
        _dot(axes, point.x, point.y, shape, filling, size=6)
    axes.margins(x=0.12)
    if x.from_zero:
        axes.set_xlim(0, max(5.0, axes.get_xlim()[1]))
    axes.set_ylim(0, max(5.0, 1.12 * max((point.y_ends or (point.y, point.y))[1] for point in points)))
    if not legend:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        _label(axes, points)


def _mark(place: int) -> tuple[str, str]:
    return _SHAPES[place // 2 % len(_SHAPES)], _ACCENT if place % 2 else _PAPER


def _dot(axes: Any, x: float, y: float, shape: str, filling: str, size: float = 5.5) -> None:
    axes.plot(
        [x], [y], shape, color=_ACCENT, markersize=size, markerfacecolor=filling, markeredgewidth=1.1, clip_on=False,
        zorder=3,
    )  # fmt: skip


def _rectangle(axes: Any, place: int, middle: float, width: float) -> None:
    hatch = _HATCHES[place % len(_HATCHES)]
    axes.barh(
        middle, width, 0.74 * _LINE, facecolor=_ACCENT if hatch == "" else _PAPER, edgecolor=_ACCENT,
        linewidth=0.9, hatch=hatch or None,
    )  # fmt: skip


def _share(axes: Any, place: int, bar: Bar, middle: float, bars: bool) -> None:
    if bar.value is None:
        return
    if bars:
        _rectangle(axes, place, middle, 100 * bar.value)
    if bar.ends is not None:
        low, high = (100 * end for end in bar.ends)
        if bars and place % len(_HATCHES):  # on paper-coloured ground, so that it is seen on top of a filled bar too
            axes.plot([low, high], [middle, middle], color=_PAPER, linewidth=3.2, solid_capstyle="butt", clip_on=False)
        axes.plot(
            [low, high], [middle, middle], color=_INK if bars else _ACCENT, linewidth=1.2, solid_capstyle="butt",
            clip_on=False,
        )  # fmt: skip
    if not bars:
        _dot(axes, 100 * bar.value, middle, *_mark(place))


def _legend_lines(names: Sequence[str]) -> list[list[str]]:
    return [textwrap.wrap(name, _CHARACTERS - 4) or [name] for name in names]


def _legend_height(names: Sequence[str]) -> float:
    return 6.0 if len(names) < 2 else 10.0 + _LINE * sum(map(len, _legend_lines(names)))


def _legend(figure: Any, names: Sequence[str], height: float, glyph: Callable[[Any, int, float], None]) -> None:
    """The series at the top of the figure, in an own system of axes that counts in points."""
    if len(names) < 2:
        return
    strip = _legend_height(names) - 6
    legend = figure.add_axes((0, 1 - strip / height, 1, strip / height))
    legend.set_axis_off()
    line = 1 + 0.5 * _LINE
    for place, lines in enumerate(_legend_lines(names)):
        glyph(legend, place, line)
        for words in lines:
            legend.text(24, line, words, va="center", fontsize=9, parse_math=False)
            line += _LINE
    legend.set_xlim(0, _WIDTH)
    legend.set_ylim(strip, 0)


def _bar_glyph(legend: Any, place: int, line: float) -> None:
    hatch = _HATCHES[place % len(_HATCHES)]
    legend.barh(
        line, 12, 8, left=6, facecolor=_ACCENT if hatch == "" else _PAPER, edgecolor=_ACCENT, linewidth=0.9,
        hatch=hatch or None,
    )  # fmt: skip


def _dot_glyph(legend: Any, place: int, line: float, dashed: bool = False) -> None:
    dash = _DASHES[place % len(_DASHES)] if dashed else "-"
    legend.plot([4, 20], [line, line], dash, color=_ACCENT, linewidth=1.1)
    _dot(legend, 12, line, *_mark(place))


def _label(axes: Any, points: Sequence[Point]) -> None:
    """Write each name beside its mark where it covers the least of what is drawn already."""
    bounds = axes.get_window_extent()
    pixel = axes.figure.dpi / 72  # one point
    to_pixels = axes.transData.transform
    taken = []
    for point in points:
        (left, bottom), (right, top) = to_pixels([(end, point.y) for end in point.x_ends or (point.x, point.x)])
        taken.append((left - 2 * pixel, bottom - 2 * pixel, right + 2 * pixel, top + 2 * pixel))
        (left, bottom), (right, top) = to_pixels([(point.x, end) for end in point.y_ends or (point.y, point.y)])
        taken.append((left - 2 * pixel, bottom - 2 * pixel, right + 2 * pixel, top + 2 * pixel))
        left, middle = to_pixels((point.x, point.y))
        taken.append((left - 4 * pixel, middle - 4 * pixel, left + 4 * pixel, middle + 4 * pixel))
    for name, x, y in (point[:3] for point in points):
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
