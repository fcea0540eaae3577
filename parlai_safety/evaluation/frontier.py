"""Safety against what it costs, over the seeds of one job, as one picture: `parlai safety_results --plot FILE`.

A panel for each cost that was measured: perplexity, coherence, evasiveness. Numbered marks are means over seeds, with
Student's interval as a cross where there are several; small dots are the seeds; the line joins the systems that no
other one beats in both. Systems without a figure are named below and not drawn. Nothing here imports ParlAI.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.seeds import read_reports
from parlai_safety.evaluation.statistics import mean_interval
from parlai_safety.files import completed

ENDINGS = (".png", ".svg")


class Cost(NamedTuple):
    """What safety may cost: its field in a report, the axis, its scale, and whether more of it is better."""

    field: str
    label: str
    scale: float = 1.0
    more_is_better: bool = False


COSTS = (
    Cost("perplexity", "perplexity on ordinary talk"),
    Cost("coherence", "coherence in adversarial contexts", more_is_better=True),
    Cost("evasive", "evasive replies to adversarial contexts, %", scale=100.0),
)


class Placed(NamedTuple):
    """A system in a panel: x and y of each seed that has both."""

    number: int
    name: str
    x: list[float]
    y: list[float]

    @property
    def middle(self) -> tuple[float, float]:
        """Its means."""
        return sum(self.x) / len(self.x), sum(self.y) / len(self.y)


def placed(reports: Sequence[dict[str, Any]], cost: Cost) -> list[Placed]:
    """The systems that have an unsafe rate and this cost in every run, in the order of the reports."""
    found = []
    for index, first in enumerate(reports[0]["systems"]):
        systems = [report["systems"][index] for report in reports]
        x = [system.get(cost.field, system["extra"].get(cost.field)) for system in systems]
        y = [system["unsafe_rate"] for system in systems]
        if None not in x and None not in y:
            found.append(Placed(index + 1, first["name"], [cost.scale * v for v in x], [100 * v for v in y]))
    return found


def not_beaten(points: Sequence[Placed], cost: Cost) -> list[Placed]:
    """The systems that no other one beats in both, from the cheapest to the safest.

    One beats another if it is at least as safe and at least as cheap, and better in one of the two.
    """
    sign = -1.0 if cost.more_is_better else 1.0

    def beaten(point: Placed) -> bool:
        x, y = sign * point.middle[0], point.middle[1]
        others = ((sign * other.middle[0], other.middle[1]) for other in points if other is not point)
        return any(a <= x and b <= y and (a, b) != (x, y) for a, b in others)

    return sorted((point for point in points if not beaten(point)), key=lambda point: sign * point.middle[0])


def draw_frontier(runs: Sequence[str | Path], path: Path) -> None:
    """Draw the reports of several runs of one job.

    Args:
        runs: folders of finished runs that compare the same systems.
        path: the picture, whose name ends in .png or .svg.

    Raises:
        SafetyError: the name ends otherwise, no system has an unsafe rate and a cost in every run, or the runs do not
            belong together.
    """
    if path.suffix not in ENDINGS:
        raise SafetyError(
            f"--plot got {str(path)!r}",
            f"The picture is written in the format that its name says, which is one of {', '.join(ENDINGS)}",
            f"Give for example --plot {path.with_suffix('.png')}",
        )
    reports = read_reports(runs)
    panels = [(cost, points) for cost in COSTS if (points := placed(reports, cost))]
    if not panels:
        raise SafetyError(
            "No system of these runs has an unsafe rate and a cost in every run",
            f"A mark stands at the unsafe rate and one of {', '.join(cost.field for cost in COSTS)}",
            "Leave --plot out, or name runs that measured them",
        )
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [system["name"] for system in reports[0]["systems"]]
    settings = {"font.size": 9, "svg.hashsalt": "parlai_safety", "axes.linewidth": 0.7}
    with matplotlib.style.context(["default", settings], after_reset=True):
        figure = Figure(figsize=(4.1 * len(panels) + 2.9, max(4.2, 0.2 * len(names) + 1)), layout="constrained")
        FigureCanvasAgg(figure)
        *axes, legend = figure.subplots(1, len(panels) + 1, width_ratios=[4.1] * len(panels) + [2.9])
        for place, (panel, (cost, points)) in enumerate(zip(axes, panels, strict=True)):
            _draw(panel, cost, points)
            if place == 0:
                panel.set_ylabel("unsafe replies to adversarial contexts, %")
        drawn = {point.number for _, points in panels for point in points}
        lines = [f"{i}  {name}{'' if i in drawn else ' (not drawn)'}" for i, name in enumerate(names, 1)]
        about = f"mean over {len(reports)} seeds, 95 % interval (t)" if len(reports) > 1 else "one seed"
        legend.set_axis_off()
        text = "\n".join([*lines, "", about, "line: not beaten in both"])
        legend.text(0, 1, text, va="top", parse_math=False, linespacing=1.35, transform=legend.transAxes)
        with completed(path, binary=True) as stream:
            metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(stream, format=path.suffix[1:], dpi=110, metadata=metadata)


def _draw(axes: Any, cost: Cost, points: Sequence[Placed]) -> None:
    from matplotlib.ticker import LogLocator

    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    values = [value for point in points for value in point.x]
    logarithmic = cost.field == "perplexity" and max(values) > 3 * min(values)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    better = "right" if cost.more_is_better else "left"
    axes.set_xlabel(f"{cost.label}{', log scale' if logarithmic else ''} ({better} is better)")
    line = [point.middle for point in not_beaten(points, cost)]
    axes.plot(*zip(*line, strict=True), color="tab:green", linewidth=1.2, alpha=0.8, zorder=1)
    for point in points:
        axes.plot(point.x, point.y, ".", color="0.6", markersize=3.5, zorder=2)
    top = max(value for point in points for value in point.y)
    low, high = axes.get_xlim()
    for point in points:
        x, y = point.middle
        for values, across in ((point.x, True), (point.y, False)):
            interval = mean_interval(values)
            if interval is not None:
                ends = (max(interval.low, low), min(interval.high, high)) if across else interval
                axes.plot(*((ends, (y, y)) if across else ((x, x), ends)), color="0.7", linewidth=0.7, zorder=1)
        axes.plot([x], [y], "o", color="tab:blue", markersize=4, zorder=3)
        axes.annotate(str(point.number), (x, y), xytext=(3, 3), textcoords="offset points", fontsize=8, zorder=4)
    axes.set_xlim(low, high)
    axes.set_ylim(0, 1.1 * top)
