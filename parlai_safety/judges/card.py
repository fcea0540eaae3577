"""The card of a judge: how good it is, on what, and for whom, in one JSON file that later runs pick up by themselves.

A card belongs to a fingerprint, which is everything that the judge's scores depend on: a judge that was trained again
has no card until it is measured again. Beside overall figures the card tells them by speaker, source, position of the
reply and identity group, how far the probabilities are calibrated (reliability bins, expected calibration error,
Brier 1950), and which thresholds give 1 % and 5 % false positives on ordinary talk. Examples from conversations that
the judge was trained on are left out and counted, wherever the judge's file remembers them. The idea of a card is that
of Mitchell et al. (2019, arXiv:1810.03993), cut down to what can be measured. Left out: any judgement on whether a
judge is good enough; `warnings` names what should make a reader careful.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parlai_safety.errors import SafetyError
from parlai_safety.files import sha256, write_json
from parlai_safety.judges.card_table import p_words
from parlai_safety.judges.data import Example, among, is_ordinary
from parlai_safety.judges.probes import measure_groups
from parlai_safety.judges.quality import (
    auc_interval,
    f1_interval,
    quality_of,
    threshold_at_false_positive_rate,
    verdicts_of,
)
from parlai_safety.judges.verdict import Judge, Verdict
from parlai_safety.statistics import clustered_rate

FORMAT, VERSION = "parlai_safety judge card", 1
MARKS = "training_conversations"  # the key of a judge's facts under which `conversation_marks` are kept
FOLDER_VARIABLE = "SAFETY_CARDS"
RATES = {"1 %": 0.01, "5 %": 0.05}
BINS = 10
LAST_POSITION = 4
WITH_FILES = frozenset({"linear", "toxicity", "parlai", "wordlist"})

FEW_UNSAFE = 50
WEAK_AUC, CHANCE_AUC = 0.7, 0.6
MUCH_ORDINARY_FLAGGED = 0.1
LARGE_GAP, GAP_P = 0.1, 0.05
MUCH_UNSCORED = 0.02
MUCH_MISCALIBRATED = 0.1


class Card(NamedTuple):
    """What `card_of` found.

    Attributes:
        card: the card, or None.
        why_not: where there is none, a sentence that says why.
    """

    card: dict[str, Any] | None
    why_not: str | None


def make_card(
    judge: Judge,
    examples: Sequence[Example],
    *,
    measured_on: str,
    files: Mapping[str, str] | None = None,
    trained_on: Mapping[str, Any] | None = None,
    verdicts: Sequence[Verdict] | None = None,
    probes: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure a judge at its own threshold.

    Args:
        judge: the judge.
        examples: labelled examples. Those whose conversation the judge's file remembers as training are left out.
        measured_on: what the examples are, in words.
        files: names of the files they come from -> SHA-256.
        trained_on: what the judge was trained on; None = what its file says, or "unknown".
        verdicts: the judge's verdicts on the examples, where they are at hand.
        probes: whether to measure the identity groups too (1,452 short replies more).
        extra: further entries, such as the agreement with another judge.

    Returns:
        The card, ready for `write_card`. Rates have 95 % intervals clustered by conversation, and their counts.

    Raises:
        SafetyError: there are no examples, or the judge was trained on all of their conversations.
    """
    seen = seen_in_training(judge, examples)
    kept = [index for index, was_seen in enumerate(seen) if not was_seen]
    if not kept:
        raise SafetyError(
            f"Of {len(examples)} examples none is left to measure {judge.spec!r} on",
            "The judge was trained on their conversations, and its figures there would flatter it"
            if examples
            else "There is nothing to measure on",
            "Measure it on another split or file",
        )
    verdicts = verdicts_of(judge, [examples[i] for i in kept]) if verdicts is None else [verdicts[i] for i in kept]
    examples = [examples[i] for i in kept]
    table = _Table(verdicts, examples, judge.threshold)
    known = dict(trained_on) if trained_on is not None else _training_facts(judge)
    labelled_bot = labelled_bot_rows(examples)
    groups = measure_groups(judge) if probes else None
    file = _file(judge)
    card: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "judge": judge.spec,
        "fingerprint": judge.fingerprint,
        "sha256": None if file is None else sha256(file),
        "threshold": judge.threshold,
        "trained_on": known,
        "measured_on": {
            "name": measured_on,
            "files": dict(files or {}),
            "n": len(examples),
            "left_out_as_seen_in_training": sum(seen),
        },
        "unscored": sum(verdict.p_unsafe is None for verdict in verdicts),
        "quality": table.quality(range(len(examples))),
        "quality_labelled_bot_turns": table.quality(labelled_bot),
        "quality_by_speaker": table.by(lambda example: example.speaker),
        "quality_by_source": table.by(lambda example: example.source),
        "quality_by_turn": table.by(_position),
        "quality_by_group": None if groups is None else groups.by_group,
        "group_gaps": None if groups is None else groups.gaps,
        "calibration": table.calibration(),
        "thresholds": {name: table.at_rate(rate, labelled_bot) for name, rate in RATES.items()},
        **(extra or {}),
    }
    card["warnings"] = _warnings(card)
    return card


def seen_in_training(judge: Judge, examples: Sequence[Example]) -> list[bool]:
    """For each example, whether the judge, or a part of it, remembers its conversation from its training."""
    seen = [False] * len(examples)
    for part in _parts(judge):
        marks = (getattr(part, "facts", None) or {}).get(MARKS)
        if marks is not None:
            seen = [a or b for a, b in zip(seen, among(examples, marks), strict=True)]
    return seen


def beside(path: str | Path) -> Path:
    """Where the card of a judge's file stands: `<file>.card.json`."""
    return Path(f"{path}.card.json")


def card_path(judge: Judge) -> Path:
    """Where a judge's card is looked for.

    Beside its file where the judge is one local file; else in the folder that SAFETY_CARDS names, or in
    `~/.cache/parlai_safety/cards`, under the judge's name and the first 16 digits of its fingerprint.
    """
    file = _file(judge)
    if file is not None:
        return beside(file)
    folder = os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "parlai_safety" / "cards"
    name = re.sub(r"[^\w.-]+", "_", judge.spec)[:80]
    return Path(folder) / f"{name}-{judge.fingerprint[:16]}.card.json"


def _file(judge: Judge) -> Path | None:
    """The one local file that a judge is, or None."""
    if isinstance(file := getattr(judge, "file", None), Path):  # a judge of the zoo, whose specification is a name
        return file
    kind, _, name = judge.spec.partition(":")
    # Of a combination, what follows the first colon is no file.
    return Path(name) if kind in WITH_FILES and Path(name).is_file() else None


def write_card(card: Mapping[str, Any], path: str | Path) -> None:
    """Write a card, whole or not at all.

    Raises:
        SafetyError: the place cannot be written.
    """
    try:
        write_json(path, dict(card))
    except OSError as error:
        raise SafetyError(
            f"The card cannot be written to {str(path)!r} ({error})",
            "A card lies beside its judge's file, or in the folder that SAFETY_CARDS names",
            "Give --out FILE, or set SAFETY_CARDS to a folder of yours",
        ) from error


def card_of(judge: Judge) -> Card:
    """Pick up the card of a judge, if there is one of this very judge.

    A card that is damaged, of another format or of another fingerprint is not used, and the reason says so.
    """
    path = card_path(judge)
    measure = f"`parlai safety_judge_card --judge {judge.spec}` makes one"
    if not path.is_file():
        return Card(None, f"The judge {judge.spec!r} has no card; {measure}.")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        kind = (card["format"], card["version"])
        fingerprint = card["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return Card(None, f"The file {str(path)!r} is no card of a judge; {measure}.")
    if kind != (FORMAT, VERSION):
        return Card(None, f"The card {str(path)!r} is {kind[0]!r} version {kind[1]}, not {VERSION}; {measure}.")
    if fingerprint != judge.fingerprint:
        return Card(None, f"The card {str(path)!r} is of another judge than {judge.spec!r} is today; {measure}.")
    return Card(card, None)


def labelled_bot_rows(examples: Sequence[Example]) -> list[int]:
    """The places of the bot's labelled replies.

    People's turns are unsafe more often, so both speakers together would credit a judge for knowing who speaks; and
    everyday talk is easier than a safe reply to an unkind turn.
    """
    return [i for i, example in enumerate(examples) if example.speaker == "bot" and not is_ordinary(example)]


class _Table:
    """Verdicts with their examples, and the figures of any part of them."""

    def __init__(self, verdicts: Sequence[Verdict], examples: Sequence[Example], threshold: float) -> None:
        self.verdicts, self.examples, self.threshold = verdicts, examples, threshold

    def quality(self, rows: Sequence[int]) -> dict[str, Any]:
        verdicts, examples = [self.verdicts[i] for i in rows], [self.examples[i] for i in rows]
        decisions = [None if v.p_unsafe is None else v.p_unsafe >= self.threshold for v in verdicts]

        def interval(wanted: Callable[[Example], bool], good: bool) -> list[float] | None:
            chosen = [i for i, example in enumerate(examples) if wanted(example)]
            outcomes = [None if decisions[i] is None else decisions[i] == good for i in chosen]
            found = clustered_rate(outcomes, [examples[i].conversation for i in chosen]).interval
            return None if found is None else [found.low, found.high]

        scored = [(v.p_unsafe, e) for v, e in zip(verdicts, examples, strict=True) if v.p_unsafe is not None]
        labels, clusters = [e.unsafe for _, e in scored], [e.conversation for _, e in scored]
        auc = auc_interval([p for p, _ in scored], labels, clusters)
        f1 = f1_interval([p >= self.threshold for p, _ in scored], labels, clusters)
        flagged = [(e.unsafe, e.conversation) for p, e in scored if p >= self.threshold]
        precision = clustered_rate([unsafe for unsafe, _ in flagged], [name for _, name in flagged]).interval
        return {
            **quality_of(verdicts, examples, self.threshold)._asdict(),
            "auc_interval": None if auc is None else list(auc),
            "f1_interval": None if f1 is None else list(f1),
            "precision_interval": None if precision is None else [precision.low, precision.high],
            "sensitivity_interval": interval(lambda e: e.unsafe, True),
            "specificity_interval": interval(lambda e: not e.unsafe, False),
            "ordinary_false_positive_interval": interval(lambda e: not e.unsafe and is_ordinary(e), True),
        }

    def by(self, name: Callable[[Example], str]) -> dict[str, dict[str, Any]]:
        groups: dict[str, list[int]] = {}
        for index, example in enumerate(self.examples):
            groups.setdefault(name(example), []).append(index)
        return {key: self.quality(rows) for key, rows in sorted(groups.items())}

    def calibration(self) -> dict[str, Any] | None:
        """Reliability bins of about equal counts; equal scores share a bin."""
        scored = [(v.p_unsafe, e.unsafe) for v, e in zip(self.verdicts, self.examples, strict=True)]
        pairs = [(p, unsafe) for p, unsafe in scored if p is not None]
        if not pairs:
            return None
        p = np.array([pair[0] for pair in pairs])
        unsafe = np.array([pair[1] for pair in pairs], dtype=float)
        distinct = np.unique(p)
        # The bin of a score is that of the first of its equals in rising order.
        place = np.searchsorted(distinct if len(distinct) <= BINS else np.sort(p), p)
        bin_of = place if len(distinct) <= BINS else place * BINS // len(p)
        bins = [
            {"mean_p_unsafe": float(p[here].mean()), "share_unsafe": float(unsafe[here].mean()), "n": int(here.sum())}
            for here in (bin_of == number for number in np.unique(bin_of))
        ]
        off = sum(one["n"] * abs(one["mean_p_unsafe"] - one["share_unsafe"]) for one in bins) / len(p)
        return {
            "n": len(p),
            "share_unsafe": float(unsafe.mean()),
            "bins": bins,
            "expected_calibration_error": float(off),
            "brier": float(np.mean((p - unsafe) ** 2)),
        }

    def at_rate(self, rate: float, labelled_bot: Sequence[int]) -> dict[str, Any] | None:
        """The lowest threshold that flags at most this share of ordinary talk, and what it does to the rest."""
        pairs = zip(self.verdicts, self.examples, strict=True)
        ordinary = [v.p_unsafe for v, e in pairs if is_ordinary(e) and v.p_unsafe is not None]
        if not ordinary or sum(p >= 1.0 for p in ordinary) > rate * len(ordinary):
            return None
        threshold = threshold_at_false_positive_rate(ordinary, rate)
        everything = quality_of(self.verdicts, self.examples, threshold)
        labelled = quality_of(
            [self.verdicts[i] for i in labelled_bot], [self.examples[i] for i in labelled_bot], threshold
        )
        return {
            "threshold": threshold,
            "sensitivity": everything.sensitivity,
            "specificity": everything.specificity,
            "unsafe": everything.unsafe,
            "safe": everything.safe,
            "ordinary": everything.ordinary,
            "labelled_bot_turns": {
                "sensitivity": labelled.sensitivity,
                "specificity": labelled.specificity,
                "unsafe": labelled.unsafe,
                "safe": labelled.safe,
            },
        }


def _position(example: Example) -> str:
    before = len(example.context)
    return f"{LAST_POSITION}+" if before >= LAST_POSITION else str(before)


def _parts(judge: Any) -> Iterator[Any]:
    """The judge and every judge inside it: of a combination, of a cache."""
    yield judge
    inside = [*getattr(judge, "parts", []), *([judge.judge] if hasattr(judge, "judge") else [])]
    for part in inside:
        yield from _parts(part)


def _training_facts(judge: Judge) -> dict[str, Any] | None:
    found = {
        part.spec: {key: value for key, value in part.facts.items() if key != MARKS}
        for part in _parts(judge)
        if getattr(part, "facts", None)
    }
    return next(iter(found.values())) if len(found) == 1 else found or None


def _warnings(card: Mapping[str, Any]) -> list[str]:
    """Sentences that a reader of any figure should know."""
    labelled, everything = card["quality_labelled_bot_turns"], card["quality"]
    main, name = (labelled, "labelled bot turns") if labelled["n"] else (everything, "all examples")
    found = []
    if card["trained_on"] is None:
        found.append("What the judge was trained on is not known; if these examples are part of it, it is flattered.")
    left_out = card["measured_on"]["left_out_as_seen_in_training"]
    if left_out:
        found.append(f"{left_out} examples were left out, because the judge was trained on their conversations.")
    if not labelled["n"]:
        found.append("No bot turn was labelled, so no rate of a bot's replies can be corrected with this card.")
    if main["unsafe"] < FEW_UNSAFE:
        found.append(f"The sensitivity was measured on {main['unsafe']} unsafe examples, fewer than {FEW_UNSAFE}.")
    if main["auc"] is None:
        found.append(f"Not both labels are among the {name}, so no AUC could be measured.")
    elif main["auc"] < CHANCE_AUC:
        found.append(f"The judge is near chance: AUC {main['auc']:.2f} on {name}.")
    elif main["auc"] < WEAK_AUC:
        found.append(f"The judge is weak: AUC {main['auc']:.2f} on {name}.")
    flagged = everything["ordinary_false_positive_rate"]
    if flagged is None:
        found.append("There was no ordinary talk to measure on, so its share of false positives is not known.")
    elif flagged > MUCH_ORDINARY_FLAGGED:
        found.append(f"{100 * flagged:.0f} % of ordinary talk is flagged.")
    if everything["n"] and card["unscored"] / everything["n"] > MUCH_UNSCORED:
        found.append(f"{card['unscored']} of {everything['n']} examples could not be scored.")
    calibration = card["calibration"]
    if calibration and calibration["expected_calibration_error"] > MUCH_MISCALIBRATED:
        off = calibration["expected_calibration_error"]
        found.append(f"p_unsafe is not a frequency: it is off by {off:.2f} on average (calibration error).")
    for kind, gap in (card["group_gaps"] or {}).items():
        if gap and gap["difference"] > LARGE_GAP and gap["p"] < GAP_P:
            found.append(
                f"Identity groups are treated unequally: {kind} sentences about {gap['highest']!r} are flagged "
                f"{100 * gap['difference']:.0f} points more often than about {gap['lowest']!r} ({p_words(gap['p'])})."
            )
    return found
