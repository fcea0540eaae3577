"""An evaluation in one table for the terminal: a row a suite, every rate with its interval and what is unscored.

Left out: categories, agreement and replies to read, for which the report is made. Nothing here imports ParlAI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parlai_safety.evaluation.results import Evaluation, JudgeEntry, Measure, SuiteResult

SHOWN = ("word_list_rate", "evasive", "canned", "coherence", "copied", "perplexity", "f1", "distinct_2")
SPECIAL = ("expected_maximum", "toxicity_probability", "failed_by_end", "recovery", "sensitive_topic", "guard_fired")


def terminal_summary(evaluation: Evaluation) -> str:
    """The table, what each judge's card says, and what only some suites have. No trailing newline."""
    from tabulate import tabulate

    rows = []
    for name, suite in evaluation.suites.items():
        unsafe = [found for found in suite.measures if found.name == "unsafe"]
        for at, measure in enumerate(unsafe):
            others = [in_words(suite.measure(key), short=True) if at == 0 else "" for key in SHOWN]
            rows.append(
                [
                    name if at == 0 else "",
                    f"{at + 1}",
                    in_words(measure),
                    _corrected(measure),
                    measure.n,
                    measure.unscored,
                    *others,
                ]
            )
    headers = ["suite", "judge", f"unsafe [{100 * evaluation.confidence:g} %]", "corrected", "n", "unscored"]
    table = tabulate(
        rows,
        headers=[*headers, *(name.replace("_", "-") for name in SHOWN)],
        tablefmt="simple",
        disable_numparse=True,
        colalign=("left", "right", *["right"] * (len(SHOWN) + 4)),
    )
    lines = [f"{evaluation.name}, seed {evaluation.seed}", "", table, ""]
    for reason, places in _uncorrected(evaluation).items():
        lines.append(f"-: {reason} ({', '.join(places) if len(places) < 4 else 'elsewhere'})")
    lines += [f"judge {at}: {_judge(judge)}" for at, judge in enumerate(evaluation.judges, 1)]
    lines += [line for name, suite in evaluation.suites.items() for line in _special(name, suite)]
    return "\n".join(lines)


def in_words(measure: Measure | None, *, short: bool = False) -> str:
    """A figure with its interval, "unscored" where nothing could be scored, and nothing where it does not apply."""
    if measure is None:
        return ""
    if measure.value is None:
        return "unscored" if measure.judge and measure.unscored else "n/a"
    share = measure.kind.unit == "share"
    text = f"{100 * measure.value:.1f} %" if share else f"{measure.value:.3g}"
    if short or measure.low is None or measure.high is None:
        return text
    ends = (100 * measure.low, 100 * measure.high) if share else (measure.low, measure.high)
    return f"{text} [{ends[0]:.1f}, {ends[1]:.1f}]" if share else f"{text} [{ends[0]:.3g}, {ends[1]:.3g}]"


def _corrected(measure: Measure) -> str:
    found: Mapping[str, Any] | None = measure.detail.get("corrected")
    if found is None:
        return "-"
    return f"{100 * found['value']:.1f} % [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _uncorrected(evaluation: Evaluation) -> dict[str, list[str]]:
    """Why rates stand as counted, and which."""
    found: dict[str, list[str]] = {}
    for name, suite in evaluation.suites.items():
        rates = [measure for measure in suite.measures if measure.name == "unsafe"]
        for at, measure in enumerate(rates, 1):
            reason = measure.detail.get("uncorrected")
            if reason:
                found.setdefault(reason, []).append(f"{name} by judge {at}")
    return found


def _judge(judge: JudgeEntry) -> str:
    if judge.card is None:
        return (
            f"{judge.spec}, threshold {judge.threshold:.3g}: no card, so its error rates are unknown and no rate is "
            "corrected (parlai safety_judge_card makes one)"
        )
    quality, of = judge.card["quality_labelled_bot_turns"], "labelled bot turns of "
    if not quality["n"]:
        quality, of = judge.card["quality"], ""

    def figure(name: str) -> str:
        return "n/a" if quality.get(name) is None else f"{quality[name]:.2f}"

    return (
        f"{judge.spec}, threshold {judge.threshold:.3g}: AUC {figure('auc')}, sensitivity {figure('sensitivity')}, "
        f"specificity {figure('specificity')} on {quality['n']} {of}{judge.card['measured_on']['name']}"
    )


def _special(name: str, suite: SuiteResult) -> list[str]:
    lines = []
    for measure in suite.measures:
        if measure.name in SPECIAL:
            by = f", by {measure.judge}" if measure.judge else ""
            parts = measure.detail.get("parts") or {}
            listed = ", ".join(f"{part} {100 * found['value']:.1f} %" for part, found in parts.items())
            words = f"{measure.kind.title} {in_words(measure)}, n {measure.n}"
            words += f", {measure.unscored} unscored" if measure.unscored else ""
            lines.append(f"{name}{by}: {words}" + (f" ({listed})" if listed else ""))
    return lines
