"""The cards of judges and detectors as blocks of a report: their error rates with n, and what they were measured on.

A card is JSON of the form that `parlai_safety.judges.card` writes; what a card lacks is left out or reads "n/a". Left
out: measuring a judge, and the correction of rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parlai_safety.evaluation import page as pages
from parlai_safety.evaluation.page import MISSING, fraction, in_words, percent
from parlai_safety.evaluation.report_figures import ends_words
from parlai_safety.evaluation.results import JudgeEntry
from parlai_safety.evaluation.statistics import rate

NO_CARD = "no card: error rates unknown"

_HEADERS = ("AUC", "F1 of unsafe", "precision", "sensitivity", "specificity", "ordinary talk flagged")
_OVERALL = (("quality", "everything"), ("quality_labelled_bot_turns", "labelled bot turns"))
_PARTS = (
    ("quality_by_speaker", "speaker"),
    ("quality_by_source", "source"),
    ("quality_by_turn", "turns before the reply"),
    ("quality_by_group", "identity group"),
)


def judge_blocks(judge: JudgeEntry, role: str) -> list[pages.Block]:
    """A judge with its card, or with the sentence that it has none."""
    known: list[tuple[str, Any]] = [
        ("judged", role),
        ("threshold", judge.threshold),
        ("fingerprint", judge.fingerprint),
    ]
    card = judge.card
    if not card:
        return [pages.Terms([*known, ("card", NO_CARD)])]
    warnings = [str(warning) for warning in card.get("warnings") or ()]
    if card.get("fingerprint") != judge.fingerprint:
        warnings.insert(0, "The card is of another fingerprint, so it may be of another judge.")
    if card.get("threshold") != judge.threshold:
        warnings.insert(0, f"The card's error rates are those at its threshold, {in_words(card.get('threshold'))}.")
    known += [(pages.spaced(key), card[key]) for key in ("measured_on", "trained_on") if key in card]
    blocks: list[pages.Block] = [pages.Terms(known)]
    if warnings:
        blocks.append(pages.Bullets([f"Careful: {warning}" for warning in warnings]))
    overall = [(label, card[key]) for key, label in _OVERALL if isinstance(card.get(key), Mapping)]
    blocks += _quality_table("How good the judge is, with 95 % intervals.", overall)
    blocks += _thresholds(card.get("thresholds"))
    parts = [
        (f"{what}: {part}", quality)
        for key, what in _PARTS
        if isinstance(card.get(key), Mapping)
        for part, quality in card[key].items()
    ]
    inside = _quality_table("The judge measured apart, with 95 % intervals.", parts)
    if inside:
        blocks.append(pages.Fold("By speaker, source, turn and identity group", inside))
    more = [(pages.spaced(key), card[key]) for key in ("group_gaps", "calibration") if card.get(key)]
    if more:
        blocks.append(pages.Fold("Gaps between groups, and calibration", [pages.Terms(more)]))
    return blocks


def detector_blocks(card: Any, users: str) -> list[pages.Block]:
    """A detector with its card: what it says in words, its figures, and the rest for those who open it."""
    known: list[tuple[str, Any]] = [("used for", users)]
    if not card:
        return [pages.Terms([*known, ("card", NO_CARD)])]
    if not isinstance(card, Mapping):
        return [pages.Terms([*known, ("card", card)])]
    words, figures, rest = [], [], []
    for key, value in card.items():
        if key in ("format", "version"):
            continue
        if _is_entry(value):
            figures.append((pages.spaced(key), _told(value)))
        elif isinstance(value, Mapping | list):
            rest.append((pages.spaced(key), _told(value)))
        else:
            words.append((pages.spaced(key), value))
    blocks: list[pages.Block] = [pages.Terms([*known, *words])]
    if figures:
        blocks += [pages.Prose("How good it is, with 95 % intervals.", quiet=True), pages.Terms(figures)]
    return [*blocks, pages.Fold("The rest of its card", [pages.Terms(rest)])] if rest else blocks


def _is_entry(value: Any) -> bool:
    """Whether a part of a card is one figure, as {"value", "low", "high", "n"}."""
    return isinstance(value, Mapping) and {"value", "n"} <= set(value)


def _told(value: Any) -> Any:
    """A part of a card with each figure in it put in words."""
    if _is_entry(value):
        if value["value"] is None:
            return f"{MISSING} (n {in_words(value['n'])})"
        low, high = value.get("low"), value.get("high")
        ends = "" if low is None or high is None else f" [{fraction(low)}, {fraction(high)}]"
        return f"{fraction(value['value'])}{ends} (n {in_words(value['n'])})"
    if isinstance(value, Mapping):
        return {pages.spaced(str(key)): _told(part) for key, part in value.items()}
    return value


def _quality_table(caption: str, parts: list[tuple[str, Any]]) -> list[pages.Block]:
    rows: list[list[pages.Cell]] = [[label, *_quality(quality)] for label, quality in parts if quality]
    used = [place for place in range(1, len(_HEADERS) + 1) if any(row[place] != MISSING for row in rows)]
    if not used:
        return []
    headers = ["measured on", *(_HEADERS[place - 1] for place in used)]
    return [pages.Table(caption, headers, [[row[0], *(row[place] for place in used)] for row in rows])]


def _quality(quality: Mapping[str, Any]) -> list[pages.Cell]:
    """AUC, F1, precision, sensitivity, specificity and ordinary talk flagged, each with its interval and its n."""
    cells: list[pages.Cell] = []
    for key in ("auc", "f1"):  # cards of earlier versions hold no F1
        value, ends = quality.get(key), quality.get(f"{key}_interval")
        between = [f"[{fraction(ends[0])}, {fraction(ends[1])}]"] if ends else []
        cells.append(MISSING if value is None else (fraction(value), *between, f"n {in_words(quality.get('n'))}"))
    precision, ends = quality.get("precision"), quality.get("precision_interval")
    between = [ends_words(*ends)] if ends else []
    cells.append(MISSING if precision is None else (percent(precision), *between))
    for key, ends, count in (
        ("sensitivity", "sensitivity_interval", "unsafe"),
        ("specificity", "specificity_interval", "safe"),
        ("ordinary_false_positive_rate", "ordinary_false_positive_interval", "ordinary"),
    ):
        cells.append(_share(quality.get(key), quality.get(ends), quality.get(count)))
    return cells


def _share(value: Any, ends: Any, n: Any) -> pages.Cell:
    """A share of n; where the card has no interval, Wilson's is taken from the counts."""
    if value is None:
        return MISSING
    if ends is None and n:
        positives = round(value * n)
        ends = rate([True] * positives + [False] * (n - positives)).interval
    between = [ends_words(*ends)] if ends else []
    return (percent(value), *between, f"n {in_words(n)}")


def _thresholds(found: Any) -> list[pages.Block]:
    """The thresholds at stated shares of ordinary talk flagged."""
    if not isinstance(found, Mapping) or not found:
        return []
    rows: list[list[pages.Cell]] = []
    for share, at in found.items():
        if not isinstance(at, Mapping):
            rows.append([str(share), in_words(at), MISSING, MISSING])
            continue
        shares = [_share(at.get(key), None, at.get(count)) for key, count in _THRESHOLD_RATES]
        rows.append([str(share), in_words(at.get("threshold")), *shares])
    caption = "The thresholds at which so much of ordinary talk is flagged, and what they do to everything."
    return [pages.Table(caption, ["ordinary talk flagged", "threshold", "sensitivity", "specificity"], rows)]


_THRESHOLD_RATES = (("sensitivity", "unsafe"), ("specificity", "safe"))
