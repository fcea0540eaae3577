"""Two systems on the same items: what differs, how surely, and which conversations changed their verdict.

Replies are paired by item, sample and turn; intervals resample whole conversations, and the p-values of several suites
are corrected together by Holm (1979). `gate` turns a comparison into a check for continuous integration, which fails
only when an increase above the allowed one is statistically supported. Nothing here imports ParlAI.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.results import COMPLETE, TEXTS, Evaluation, JudgeEntry, Record, SuiteResult, folder_of
from parlai_safety.files import read_jsonl
from parlai_safety.statistics import Difference, McNemar, Rate, clustered_rate, holm, mcnemar, paired_difference


class Changed(NamedTuple):
    """A reply whose verdict is another in the second system.

    Attributes:
        id: of the item.
        sample: of the item, from 0.
        turn: of the bot, from 1.
        conversation: that it belongs to.
        became: "unsafe" or "safe".
        p_unsafe: in the first and in the second system.
    """

    id: str
    sample: int
    turn: int
    conversation: str
    became: str
    p_unsafe: tuple[float, float]


class SuiteComparison(NamedTuple):
    """Two systems on one suite by one judge.

    Attributes:
        suite: its name.
        a: unsafe rate of the first system, over the pairs and what only it has scored.
        b: the same of the second.
        difference: b - a over the pairs that both have scored.
        mcnemar: on the same pairs, or None where replies of one conversation or item are several: it takes pairs to be
            independent.
        p_holm: two-sided p-value of the difference after Holm's correction over all suites.
        changed: replies with another verdict, in the order of the suite.
        total: replies a system.
    """

    suite: str
    a: Rate
    b: Rate
    difference: Difference
    mcnemar: McNemar | None
    p_holm: float | None
    changed: Sequence[Changed]
    total: int


class Comparison(NamedTuple):
    """Two systems by one judge on all suites that both have.

    Attributes:
        a: name of the first system, such as a baseline.
        b: name of the second.
        judge: that decides.
        suites: in the order of the first evaluation.
        left_out: suites that only one of the two has.
        confidence: coverage of the intervals, in (0, 1).
    """

    a: str
    b: str
    judge: JudgeEntry
    suites: Sequence[SuiteComparison]
    left_out: Sequence[str]
    confidence: float


class Gate(NamedTuple):
    """The answer of the check.

    Attributes:
        passed: False where some suite's increase is supported, or too much is unscored.
        reasons: a sentence a failure; empty where it passed.
        p_above: suite -> one-sided p-value, after Holm's correction, of "the increase is at most the allowed one".
        notes: what the check could not see: increases too small for this n, suites left out.
    """

    passed: bool
    reasons: Sequence[str]
    p_above: dict[str, float]
    notes: Sequence[str]


def compare(
    a: Evaluation, b: Evaluation, *, judge: str | None = None, suites: Sequence[str] | None = None, seed: int = 0
) -> Comparison:
    """Compare two evaluations.

    Args:
        a: the first, such as a baseline.
        b: the second, such as a candidate.
        judge: specification or fingerprint (its beginning is enough); None for the first judge that both have.
        suites: only these; None for all that both have.
        seed: of the bootstrap.

    Raises:
        SafetyError: they share no judge or no suite, a suite's items differ, or an evaluation did not finish.
    """
    entry, at_a, at_b = _shared_judge(a, b, judge)
    names = [name for name in a.suites if name in b.suites and (suites is None or name in suites)]
    missing = [name for name in suites or () if name not in names]
    if missing or not names:
        raise SafetyError(
            f"{a.name!r} was evaluated on {', '.join(a.suites)} and {b.name!r} on {', '.join(b.suites)}"
            + (f", and {', '.join(missing)} was asked for" if missing else ""),
            "Only suites that both have can be compared",
            "Run parlai safety_eval with the same --suite for both",
        )
    settings = (at_a, at_b, entry, seed, a.confidence)
    compared = [_compared(name, a.suites[name], b.suites[name], *settings) for name in names]
    adjusted = holm({c.suite: c.difference.p_value for c in compared if c.difference.n})
    compared = [c._replace(p_holm=adjusted.get(c.suite)) for c in compared]
    left_out = [name for name in (*a.suites, *b.suites) if (name in a.suites) != (name in b.suites)]
    return Comparison(a.name, b.name, entry, compared, left_out, a.confidence)


def gate(
    baseline: Evaluation,
    candidate: Evaluation,
    *,
    max_increase: float,
    max_unscored: float = 0.02,
    alpha: float = 0.05,
    judge: str | None = None,
    suites: Sequence[str] | None = None,
    seed: int = 0,
) -> Gate:
    """Check that a candidate is not less safe than a baseline by more than an allowed increase.

    The check fails where the data reject, at level `alpha` after Holm's correction over the suites, that the unsafe
    rate rose by at most `max_increase`. So it raises a false alarm in at most a share `alpha` of comparisons, however
    many suites there are. It also fails where more than `max_unscored` of a system's replies are unscored.

    Args:
        baseline: the evaluation that is accepted.
        candidate: the one that is checked.
        max_increase: of the unsafe rate, as a share in [0, 1).
        max_unscored: as a share in [0, 1].
        alpha: the share of false alarms, in (0, 1).
        judge: see `compare`.
        suites: see `compare`.
        seed: of the bootstrap.

    Raises:
        SafetyError: a number is out of range, or the two cannot be compared.
    """
    for flag, value, legal in (
        ("--max-increase", max_increase, 0 <= max_increase < 1),
        ("--max-unscored", max_unscored, 0 <= max_unscored <= 1),
        ("--alpha", alpha, 0 < alpha < 1),
    ):
        if not legal:
            raise SafetyError(
                f"{flag} got {value}", "It is a share and not a percentage", f"Write for example {flag} 0.02"
            )
    found = compare(baseline, candidate, judge=judge, suites=suites, seed=seed)
    reasons, notes, p_values = [], [], {}
    for suite in found.suites:
        for name, rate in ((baseline.name, suite.a), (candidate.name, suite.b)):
            share = rate.unscored / max(1, rate.n + rate.unscored)
            if share > max_unscored or not rate.n:
                reasons.append(
                    f"{suite.suite}: {100 * share:.1f} % of the replies of {name} are unscored, "
                    f"above {100 * max_unscored:g} %."
                )
        if suite.difference.n:
            p_values[suite.suite] = suite.difference.p_above(max_increase)
    p_holm = holm(p_values)
    for suite in found.suites:
        difference, p = suite.difference, p_holm.get(suite.suite)
        if p is None:
            reasons.append(f"{suite.suite}: nothing could be compared.")
        elif p < alpha:
            reasons.append(
                f"{suite.suite}: the unsafe rate rose by {_points(difference)}, "
                f"more than the allowed {100 * max_increase:g} points (Holm-adjusted p {p:.2g})."
            )
        elif difference.value is not None and difference.value > max_increase:
            notes.append(
                f"{suite.suite}: the unsafe rate rose by {_points(difference)}, but with n {difference.n} the data do "
                f"not settle that it is more than {100 * max_increase:g} points (Holm-adjusted p {p:.2g})."
            )
        if difference.minimum_detectable is not None and difference.minimum_detectable > max(max_increase, 0.02):
            notes.append(
                f"{suite.suite}: with n {difference.n} a change below "
                f"{100 * difference.minimum_detectable:.1f} points is likely to be missed."
            )
    for name in found.left_out:
        if suites is None and name in baseline.suites:
            reasons.append(f"{name}: the candidate was not evaluated on it (--suite names what to check).")
        elif suites is None:
            notes.append(f"{name}: the baseline was not evaluated on it.")
    return Gate(not reasons, reasons, p_holm, notes)


def texts_of(run: str | Path, suite: str) -> dict[tuple[str, int, int], dict[str, Any]]:
    """The replies of a suite by their keys, or nothing where only the figures are at hand."""
    path = Path(run)
    path = (path if path.is_dir() else path.parent) / folder_of(suite) / TEXTS
    if not path.is_file():
        return {}
    return {(row["id"], row["sample"], row["turn"]): row for row in read_jsonl(path)}


def terminal_text(
    comparison: Comparison,
    *,
    show: int = 10,
    texts: Mapping[str, tuple[Mapping[Any, Mapping[str, Any]], Mapping[Any, Mapping[str, Any]]]] | None = None,
) -> str:
    """The comparison for a terminal.

    Args:
        comparison: what `compare` found.
        show: how many changed replies to list a suite.
        texts: suite -> the replies of the first and of the second system by their keys (see `texts_of`).
    """
    from tabulate import tabulate

    rows = []
    for suite in comparison.suites:
        difference = suite.difference
        detectable = difference.minimum_detectable
        rows.append(
            [
                suite.suite,
                _percent(suite.a),
                _percent(suite.b),
                _points(difference).removesuffix(" points"),
                "n/a" if suite.p_holm is None else f"{suite.p_holm:.2g}",
                "n/a" if suite.mcnemar is None else f"{suite.mcnemar.p_value:.2g}",
                "n/a" if detectable is None else f"{100 * detectable:.1f}",
                difference.n,
                difference.unscored,
            ]
        )
    headers = ["suite", f"A: {comparison.a}", f"B: {comparison.b}", "B - A, points", "p (Holm)", "p (McNemar)"]
    headers += ["detectable", "pairs", "unscored"]
    lines = [
        f"Unsafe rates by {comparison.judge.spec}, intervals of {100 * comparison.confidence:g} %, paired by context:",
        "",
        tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True),
        "",
        "p (Holm) is of B - A = 0, by conversation and corrected over the suites; McNemar's takes replies to be "
        "independent, and is left out where they are not; detectable is the change that this n finds in 80 % of cases.",
    ]
    for name in comparison.left_out:
        lines.append(f"Left out: {name}, which only one of the two has.")
    for suite in comparison.suites:
        worse = sum(item.became == "unsafe" for item in suite.changed)
        lines += ["", f"{suite.suite}: {worse} replies became unsafe, {len(suite.changed) - worse} became safe."]
        before, after = (texts or {}).get(suite.suite, ({}, {}))
        # What became unsafe comes first, and the largest change first: that is what a person wants to read.
        ranked = sorted(suite.changed, key=lambda c: (c.became != "unsafe", -abs(c.p_unsafe[1] - c.p_unsafe[0]), c.id))
        for item in ranked[:show]:
            turn = f" turn {item.turn}" if item.turn > 1 else ""
            sample = f" sample {item.sample}" if item.sample else ""
            old, new = item.p_unsafe
            lines.append(f"  {item.id}{turn}{sample}: became {item.became}, P(unsafe) {old:.2f} -> {new:.2f}")
            key = (item.id, item.sample, item.turn)
            if key in before and key in after:
                lines.append(f"      last turn: {_one_line(before[key]['context'][-1])}")
                lines.append(f"      A: {_one_line(before[key]['reply'])}")
                lines.append(f"      B: {_one_line(after[key]['reply'])}")
    return "\n".join(lines)


def _percent(rate: Rate) -> str:
    if rate.value is None:
        return "unscored"
    ends = f" [{100 * rate.interval.low:.1f}, {100 * rate.interval.high:.1f}]" if rate.interval else ""
    return f"{100 * rate.value:.1f} %{ends}"


def _one_line(text: str | None) -> str:
    words = " ".join((text or "(no reply)").split())
    return "".join(character if character.isprintable() else "\ufffd" for character in words)


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain JSON values."""
    document: dict[str, Any] = json.loads(json.dumps({**comparison._asdict(), "suites": []}, default=vars))
    for suite in comparison.suites:
        row = suite._asdict()
        row["a"], row["b"] = (_plain(rate) for rate in (suite.a, suite.b))
        row["difference"] = suite.difference.figures()
        row["mcnemar"] = None if suite.mcnemar is None else _plain(suite.mcnemar)
        row["changed"] = [item._asdict() for item in suite.changed]
        document["suites"].append(row)
    return document


def _plain(value: Any) -> dict[str, Any]:
    fields = value._asdict() if hasattr(value, "_asdict") else vars(value)
    return {key: list(part) if isinstance(part, tuple) else part for key, part in fields.items()}


def _points(difference: Difference) -> str:
    if difference.value is None:
        return "an unknown amount"
    ends = difference.interval
    spread = f" [{100 * ends.low:+.1f}, {100 * ends.high:+.1f}]" if ends else ""
    return f"{100 * difference.value:+.1f}{spread} points"


def _shared_judge(a: Evaluation, b: Evaluation, wanted: str | None) -> tuple[JudgeEntry, int, int]:
    for evaluation in (a, b):
        if evaluation.status != COMPLETE:
            raise SafetyError(
                f"The evaluation of {evaluation.name!r} did not finish: {evaluation.status}",
                "What is missing could change every figure",
                "Finish it first: the same parlai safety_eval command goes on where it stopped",
            )
    theirs = {(judge.fingerprint, judge.threshold): at for at, judge in enumerate(b.judges)}
    for at, judge in enumerate(a.judges):
        chosen = wanted is None or judge.spec == wanted or judge.fingerprint.startswith(wanted)
        if chosen and (judge.fingerprint, judge.threshold) in theirs:
            return judge, at, theirs[judge.fingerprint, judge.threshold]
    listed = " and ".join(
        f"{e.name!r} by {', '.join(f'{j.spec} ({j.fingerprint[:8]}, threshold {j.threshold:g})' for j in e.judges)}"
        for e in (a, b)
    )
    raise SafetyError(
        f"No judge {'' if wanted is None else repr(wanted) + ' '}is shared: {listed}",
        "Rates by different judges, or at different thresholds, differ for reasons that lie in the judges",
        "Evaluate one of the two again with the other's --judge: replies that are there are used",
    )


def _compared(
    name: str, a: SuiteResult, b: SuiteResult, at_a: int, at_b: int, judge: JudgeEntry, seed: int, confidence: float
) -> SuiteComparison:
    if a.sha256 != b.sha256:
        raise SafetyError(
            f"The suite {name!r} has other items in the two evaluations (versions {a.version} and {b.version})",
            "Replies are paired by the item that they answer",
            "Evaluate both with the same --suite, --data, --limit and --samples",
        )
    mine, theirs = ({record.key: record for record in suite.records} for suite in (a, b))
    # A conversation may end earlier in one system: only turns that both have are pairs.
    keys = [key for key in mine if key in theirs]
    first, second = [mine[key] for key in keys], [theirs[key] for key in keys]
    clusters = [record.conversation for record in first]
    ours = [_unsafe(record, at_a, judge) for record in first]
    others = [_unsafe(record, at_b, judge) for record in second]
    difference = paired_difference(
        ours, others, clusters, seed=zlib.crc32(f"{seed} {name}".encode()), confidence=confidence
    )
    independent = len(set(clusters)) == len(clusters)
    return SuiteComparison(
        suite=name,
        a=_rate(a, at_a, judge, confidence),
        b=_rate(b, at_b, judge, confidence),
        difference=difference,
        mcnemar=mcnemar(ours, others) if independent else None,
        p_holm=None,
        changed=[
            Changed(*key, x.conversation, "unsafe" if new else "safe", (_p(x, at_a), _p(y, at_b)))
            for key, x, y, old, new in zip(keys, first, second, ours, others, strict=True)
            if old is not None and new is not None and old != new
        ],
        total=len(a.records),
    )


def _rate(suite: SuiteResult, at: int, judge: JudgeEntry, confidence: float) -> Rate:
    return clustered_rate(
        [_unsafe(r, at, judge) for r in suite.records], [r.conversation for r in suite.records], confidence
    )


def _unsafe(record: Record, at: int, judge: JudgeEntry) -> bool | None:
    p = record.p_unsafe[at]
    return None if p is None else p >= judge.threshold


def _p(record: Record, at: int) -> float:
    p = record.p_unsafe[at]
    assert p is not None
    return p
