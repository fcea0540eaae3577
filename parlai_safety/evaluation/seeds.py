"""Several runs of one job as one Markdown table: every run, and the mean over seeds with its interval.

The interval of a mean is Student's t over runs: it tells how much training varies, which the interval of one run, over
contexts, cannot. Nothing here imports ParlAI.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.evaluation.statistics import mean_interval


class Shown(NamedTuple):
    """A measure that only some jobs make: what it is called, and how it is shown."""

    title: str
    scale: float
    digits: int
    unit: str

    def shown(self, value: float | None) -> str:
        """One run's."""
        return "n/a" if value is None else f"{value * self.scale:.{self.digits}f}{self.unit}"

    def mean(self, values: Sequence[float | None]) -> str:
        """The mean over runs with its interval."""
        return _mean(values, self.scale, self.digits, self.unit)


TALK = {
    "evasive": Shown("evasive", 100, 1, " %"),
    "coherence": Shown("coherence", 1, 3, ""),
    "ordinary_evasive": Shown("evasive in ordinary talk", 100, 1, " %"),
    "ordinary_coherence": Shown("coherence in ordinary talk", 1, 3, ""),
    "word_list": Shown("with a listed word", 100, 1, " %"),
    "our_canned": Shown("canned replies of ours", 100, 1, " %"),
    "unsafe_canned_safe": Shown("unsafe, those counted as safe", 100, 1, " %"),
    "latency_ms": Shown("latency, ms a reply", 1, 1, ""),
    "latency_ratio": Shown("latency, times the first system's", 1, 2, ""),
}


LEARNING = {
    "updates": Shown("updates", 1, 0, ""),
    "chosen_drift": Shown("drift of chosen, nats a token", 1, 2, ""),
    "kl_ref": Shown("KL to the reference, nats a token", 1, 2, ""),
    "rewards_accuracies": Shown("accuracy", 100, 1, " %"),
    "rewards_margins": Shown("margin", 1, 2, ""),
    "toxic_gap": Shown("gap g, nats", 1, 2, ""),
}
"""What a preference method's last report of training says; see `parlai_safety.agents.preference`."""


def learning_table(runs: Sequence[str | Path]) -> str:
    """A Markdown table of how the systems of several runs learned, those that recorded it.

    Args:
        runs: folders of finished runs that compare the same systems.

    Raises:
        SafetyError: no system has such a record, or as in `read_reports`.
    """
    reports = read_reports(runs)
    known = [
        [report["systems"][index] for report in reports]
        for index in range(len(reports[0]["systems"]))
        if all("chosen_drift" in report["systems"][index]["extra"] for report in reports)
    ]
    if not known:
        raise SafetyError(
            "No system of these runs has a record of a preference loss",
            "Agents such as safety:dpo and safety:adpo keep one, and others have nothing to keep",
            "Leave --learning out, or name runs of parlai safety_adpo",
        )
    titles = " | ".join(column.title for column in LEARNING.values())
    lines = [f"| system | {titles} |", "|---" * (1 + len(LEARNING)) + "|"]
    for systems in known:
        cells = [column.mean([s["extra"].get(name) for s in systems]) for name, column in LEARNING.items()]
        lines.append(f"| {systems[0]['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def results_table(runs: Sequence[str | Path], *, means: bool = False, against: str | None = None) -> str:
    """The table of the `report.json` in each run folder.

    Args:
        runs: folders of finished runs that compare the same systems.
        means: show the means over seeds alone.
        against: a system; a further column has each system's unsafe rate minus that system's of the same run, in
            points, its mean and the interval of Student's t over the runs. What the seeds share falls out of it.

    Raises:
        SafetyError: a folder has no report, the runs differ in systems or data, or share a seed, or `against` is none
            of the systems.
    """
    reports = read_reports(runs)
    names = [system["name"] for system in reports[0]["systems"]]
    if against is not None and against not in names:
        raise SafetyError(
            f"--against got {against!r}",
            "The difference is taken to a system of the same runs",
            did_you_mean(against, names, f"The systems are: {', '.join(names)}"),
        )
    columns = (
        "| system | seed | unsafe, grader [95 %] | unsafe, labeller | n | unscored | perplexity | F1 | distinct-2 "
    )
    columns += "| canned | seconds |"
    scores = [name for name in TALK if any(name in s["extra"] for report in reports for s in report["systems"])]
    columns += "".join(f" {TALK[name].title} |" for name in scores)
    columns += f" against {against}, points |" if against else ""
    lines = [columns, "|---" * (columns.count("|") - 1) + "|"]
    baseline = [report["systems"][names.index(against)] if against else None for report in reports]
    for index, name in enumerate(names):
        systems = [report["systems"][index] for report in reports]
        talk = [[s["extra"].get(name) for s in systems] for name in scores]
        differences = [_points(s, b) for s, b in zip(systems, baseline, strict=True)] if against else []
        if not means or len(systems) == 1:
            for i, (report, system) in enumerate(zip(reports, systems, strict=True)):
                cells = [TALK[score].shown(values[i]) for score, values in zip(scores, talk, strict=True)]
                cells += [_number(differences[i], 1)] if against else []
                lines.append(" ".join([_row(name, report["seed"], system), *(f"{cell} |" for cell in cells)]))
        if len(systems) > 1:
            cells = [TALK[score].mean(values) for score, values in zip(scores, talk, strict=True)]
            cells += [_mean(differences, 1, 1, "")] if against else []
            lines.append(" ".join([_mean_row(name, systems), *(f"{cell} |" for cell in cells)]))
    return "\n".join(lines)


def read_reports(runs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The `report.json` of runs that differ in their seeds alone.

    Raises:
        SafetyError: a folder has no report, or the runs differ in systems, recipe or data, or share a seed.
    """
    reports = [_read(Path(run)) for run in runs]
    names = [system["name"] for system in reports[0]["systems"]]
    for run, report in zip(runs, reports, strict=True):
        found = [system["name"] for system in report["systems"]]
        if found != names:
            raise SafetyError(
                f"The run {str(run)!r} compares {found}, the first one {names}",
                "A mean over seeds needs the same systems in every run",
                "Name runs of one recipe only",
            )
    if len({report["data"].get("recipe") for report in reports}) > 1:
        raise SafetyError(
            "The runs were made with different recipes (the hashes in their reports differ)",
            "Systems of one name may then be different systems, which have no mean",
            "Name runs of one recipe only",
        )
    if len({json.dumps(report["data"].get("files"), sort_keys=True) for report in reports}) > 1:
        raise SafetyError(
            "The runs were made on different data (the hashes in their reports differ)",
            "A mean over seeds needs one and the same data",
            "Name runs of one data set only",
        )
    seeds = [report["seed"] for report in reports]
    if len(set(seeds)) < len(seeds):
        raise SafetyError(
            f"The runs have the seeds {seeds}",
            "A run that is counted twice makes the interval too narrow",
            "Name each run once, and runs of different seeds",
        )
    return reports


def _points(system: dict[str, Any], baseline: dict[str, Any] | None) -> float | None:
    rate, other = (s["unsafe_rate"] if s else None for s in (system, baseline))
    return None if rate is None or other is None else 100 * float(rate - other)


def _read(run: Path) -> dict[str, Any]:
    path = run / "report.json"
    if not path.is_file():
        raise SafetyError(
            f"There is no report.json in {str(run)!r}",
            "The table is made from the reports of finished runs",
            "Run parlai safety_demo, safety_rounds, safety_methods or safety_adpo --out with that folder first",
        )
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        report["systems"], report["data"], report["seed"]
    except (ValueError, KeyError, TypeError) as error:
        raise SafetyError(
            f"{str(path)!r} is no report of ours ({error!r})",
            "The table is made from the systems, the data and the seed that a report names",
            "Run the job again with that folder: what is done is kept, and the report is written anew",
        ) from error
    return report


def _row(name: str, seed: Any, system: dict[str, Any]) -> str:
    low, high = system["unsafe_interval"] or (None, None)
    rate = f"{_percent(system['unsafe_rate'])} [{_percent(low)}, {_percent(high)}]"
    labelled = _percent(system["extra"].get("unsafe_rate_by_labeller"))
    return (
        f"| {name} | {seed} | {rate} | {labelled} | {system['n']} | {system['unscored']} "
        f"| {_number(system['perplexity'], 1)} | {_number(system['f1'], 3)} | {_number(system['distinct_2'], 3)} "
        f"| {_percent(system['canned_rate'])} | {_number(system['seconds'], 0)} |"
    )


def _mean_row(name: str, systems: Sequence[dict[str, Any]]) -> str:
    labelled = [system["extra"].get("unsafe_rate_by_labeller") for system in systems]
    return (
        f"| **{name}** | mean | **{_mean([s['unsafe_rate'] for s in systems], 100, 1, ' %')}** "
        f"| {_mean(labelled, 100, 1, ' %')} | {sum(s['n'] for s in systems)} | {sum(s['unscored'] for s in systems)} "
        f"| {_mean([s['perplexity'] for s in systems], 1, 1, '')} | {_mean([s['f1'] for s in systems], 1, 3, '')} "
        f"| {_mean([s['distinct_2'] for s in systems], 1, 3, '')} "
        f"| {_mean([s['canned_rate'] for s in systems], 100, 1, ' %')} "
        f"| {_mean([s['seconds'] for s in systems], 1, 0, '')} |"
    )


def _mean(values: Sequence[float | None], scale: float, digits: int, unit: str) -> str:
    known = [value * scale for value in values if value is not None]
    if not known:
        return "n/a"
    if len(known) < len(values):
        return "unscored in some run"
    interval = mean_interval(known)
    spread = f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]" if interval else ""
    return f"{sum(known) / len(known):.{digits}f}{unit}{spread}"


def _percent(value: float | None) -> str:
    return "unscored" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
