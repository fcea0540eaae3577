"""Figures of an evaluation as a report needs them: found by name, put in words, and told apart where they are missing.

A value that is None reads "unscored" where a judge should have given it, "n/a" elsewhere, and never 0. Left out: what
is shown where, which `report_runs.py` decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, NamedTuple

from parlai_safety.evaluation import page as pages
from parlai_safety.evaluation import plots
from parlai_safety.evaluation.page import MISSING, UNSCORED, fraction, number, percent
from parlai_safety.evaluation.report import unscored_bounds
from parlai_safety.evaluation.results import Evaluation, Measure, SuiteResult
from parlai_safety.evaluation.statistics import Interval, intervals_overlap

By = Literal["category", "group"]


class Gap(NamedTuple):
    """The two identity groups whose unsafe rates lie furthest apart; `overlap` of their intervals, None without any."""

    high_group: str
    high_rate: float
    low_group: str
    low_rate: float
    overlap: bool | None
    pairs: int


def largest_gap(evaluation: Evaluation, suite: str) -> Gap | None:
    """The largest gap among the identity groups of a suite by the first judge; None where fewer than two are scored."""
    if suite not in evaluation.suites:
        return None
    parts = evaluation.suites[suite].by_group
    found = [(group, m) for group in parts if (m := part_of(evaluation, suite, "group", group)) and m.value is not None]
    if len(found) < 2:
        return None
    high = max(found, key=lambda pair: pair[1].value or 0.0)
    low = min((pair for pair in found if pair is not high), key=lambda pair: pair[1].value or 0.0)
    ends = interval_of(low[1]), interval_of(high[1])
    overlap = None if ends[0] is None or ends[1] is None else intervals_overlap(ends[0], ends[1])
    assert low[1].value is not None and high[1].value is not None
    return Gap(high[0], high[1].value, low[0], low[1].value, overlap, len(found) * (len(found) - 1) // 2)


def measure_of(evaluation: Evaluation, suite: str, name: str) -> Measure | None:
    """A figure of a suite by its name; None where the suite or the figure is missing."""
    return evaluation.suites[suite].measure(name) if suite in evaluation.suites else None


def unsafe_of(evaluation: Evaluation, suite: str) -> Measure | None:
    """The unsafe rate by the first judge."""
    if suite not in evaluation.suites or not evaluation.judges:
        return None
    return evaluation.suites[suite].measure("unsafe", evaluation.judges[0].spec)


def parts_of(suite: SuiteResult, by: By) -> Mapping[str, Sequence[Measure]]:
    """The figures of a suite by category, or by identity group."""
    return suite.by_category if by == "category" else suite.by_group


def part_of(evaluation: Evaluation, suite: str, by: By, label: str) -> Measure | None:
    """The unsafe rate of one category or group by the first judge."""
    judge = evaluation.judges[0].spec if evaluation.judges else None
    listed = parts_of(evaluation.suites[suite], by).get(label, ())
    return next((m for m in listed if m.name == "unsafe" and m.judge in (None, judge)), None)


def interval_of(measure: Measure | None) -> Interval | None:
    """The interval of a figure; None where there is no figure or no interval."""
    if measure is None or measure.low is None or measure.high is None:
        return None
    return Interval(measure.low, measure.high)


def scaled(factor: float, ends: Interval | None) -> plots.Ends | None:
    """An interval times a factor, for a plot."""
    return None if ends is None else (factor * ends.low, factor * ends.high)


def corrected_of(measure: Measure) -> Mapping[str, Any] | None:
    """The rate corrected for the judge's errors, as {value, low, high}; None where it could not be corrected."""
    found = measure.detail.get("corrected")
    return found if isinstance(found, Mapping) and found.get("value") is not None else None


def value_words(measure: Measure) -> str:
    """The value in its unit, without the interval."""
    if measure.value is None:
        return UNSCORED if measure.unscored else MISSING
    if measure.kind.unit == "share":
        return percent(measure.value)
    return _of_any_size(measure.value)


def _of_any_size(value: float) -> str:
    return fraction(value) if abs(value) < 2 else number(value)


def ends_words(low: float | None, high: float | None, unit: str = "share") -> str:
    """An interval in brackets."""
    if low is None or high is None:
        return "no interval"
    if unit == "share":
        return f"[{100 * low:.1f}, {100 * high:.1f}]"
    return f"[{_of_any_size(low)}, {_of_any_size(high)}]"


def _count(measure: Measure) -> str:
    return f"n {measure.n}, {measure.unscored} unscored"


def rate_cell(measure: Measure | None) -> pages.Cell:
    """An unsafe rate with everything that has to stand beside it."""
    if measure is None:
        return MISSING
    if measure.value is None:
        return (value_words(measure), _count(measure))
    found = corrected_of(measure)
    last = "uncorrected"
    if found is not None:
        last = f"corrected {percent(found['value'])} {ends_words(found.get('low'), found.get('high'))}"
    return (percent(measure.value), ends_words(measure.low, measure.high), _count(measure), last)


def figure_cell(measure: Measure | None) -> pages.Cell:
    """Any figure with its interval, n and number of unscored, as the lines of a cell."""
    if measure is None or (measure.value is None and not measure.unscored):
        return MISSING
    count = _count(measure) if measure.unscored else f"n {measure.n}"
    if measure.value is None:
        return (value_words(measure), count)
    ends = [] if measure.low is None else [ends_words(measure.low, measure.high, measure.kind.unit)]
    return (value_words(measure), *ends, count)


def bounds_cell(measure: Measure | None) -> pages.Cell:
    """The rate if all unscored replies were safe, and if all were unsafe; "n/a" where none is unscored."""
    if measure is None or not measure.unscored:
        return MISSING
    if measure.value is None:
        return UNSCORED
    ends = unscored_bounds(measure.value, measure.n, measure.unscored)
    return f"{percent(ends.low)} to {percent(ends.high)}"


def bar_of(measure: Measure | None) -> plots.Bar:
    """An unsafe rate as a bar of a plot."""
    if measure is None:
        return plots.Bar(None, None, MISSING)
    return plots.Bar(measure.value, interval_of(measure), value_words(measure))


def listed(names: Sequence[str]) -> str:
    """Names in a sentence; at least one."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def figures_of(evaluation: Evaluation) -> dict[str, Any]:
    """Everything of an evaluation but its records."""
    document = asdict(replace(evaluation, suites={}))
    document["suites"] = {}
    for name, suite in evaluation.suites.items():
        found = asdict(replace(suite, records=(), survival=()))
        del found["records"]
        found["survival"] = [curve._asdict() for curve in suite.survival]
        document["suites"][name] = found
    return document
