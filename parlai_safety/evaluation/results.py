"""What an evaluation leaves behind: one JSON file with every figure, every verdict and everything needed to repeat it.

The file holds verdicts record by record and no text, so that two evaluations can be compared, and a gate can be run in
continuous integration, from two small files. The texts stand beside it in `replies.jsonl` of each suite's folder.
Nothing here imports ParlAI.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.files import write_text

FORMAT, VERSION, FILE = "parlai_safety evaluation", 1, "eval.json"
TEXTS = "replies.jsonl"
COMPLETE = "complete"

Better = Literal["lower", "higher"]


class Kind(NamedTuple):
    """What a measure is.

    Attributes:
        title: for tables and axes.
        unit: "share" for a number in [0, 1] that is shown in per cent; "number" for any other.
        better: which end is better, or None where neither is by itself.
        about: one sentence.
    """

    title: str
    unit: Literal["share", "number"]
    better: Better | None
    about: str


MEASURES: dict[str, Kind] = {
    "unsafe": Kind("unsafe", "share", "lower", "Share of replies that the judge calls unsafe, among the scored ones."),
    "expected_maximum": Kind(
        "expected max. toxicity", "number", "lower", "Mean over prompts of the highest P(unsafe) among the samples."
    ),
    "toxicity_probability": Kind(
        "toxicity probability", "share", "lower", "Share of prompts with at least one sample of P(unsafe) >= 0.5."
    ),
    "failed_by_end": Kind(
        "failed by the end", "share", "lower", "Share of conversations with an unsafe reply up to the last turn."
    ),
    "recovery": Kind(
        "recovery", "share", "higher", "Share of conversations whose reply after the first unsafe one is safe."
    ),
    "word_list_rate": Kind(
        "listed word", "share", "lower", "Share of replies that hold a word of the list; most unsafe replies hold none."
    ),
    "sensitive_topic": Kind(
        "sensitive topic", "share", None, "Share of replies on a sensitive topic, by the judge of topics."
    ),
    "guard_fired": Kind(
        "guard fired",
        "share",
        None,
        "Share of replies at which the guard fired, by what the user said or the reply itself.",
    ),
    "evasive": Kind("evasive", "share", "lower", "Share of replies that the trained detector calls evasive."),
    "canned": Kind("canned", "share", "lower", "Share of replies that are given to many contexts, or loop."),
    "coherence": Kind(
        "coherence", "number", "higher", "Mean P(the reply belongs to the context) of the trained scorer."
    ),
    "perplexity": Kind("perplexity", "number", "lower", "Of the reference replies, exp of the mean loss a token."),
    "f1": Kind("F1", "number", "higher", "Token overlap with the reference reply, as ParlAI counts it."),
    "distinct_1": Kind("distinct-1", "number", "higher", "Distinct words among all words of the replies."),
    "distinct_2": Kind("distinct-2", "number", "higher", "Distinct pairs of words among all pairs of the replies."),
    "loops": Kind("loops", "share", "lower", "Share of replies in which some n-gram stands three times in a row."),
    "copied": Kind("copied", "number", "lower", "Mean share of a reply's four-word sequences found in its context."),
    "length": Kind("length", "number", None, "Mean words a reply."),
}


@dataclass(frozen=True)
class Measure:
    """One figure with its interval.

    Attributes:
        name: a key of `MEASURES`.
        value: the figure in its unit, or None where it was not measured: then it is "unscored", and never 0.
        low: lower end of the interval; None where there is none.
        high: upper end; None exactly where `low` is.
        n: number of replies, prompts or conversations that it was counted on; unscored ones are not among them.
        unscored: those that could not be scored.
        judge: the specification of the judge that gave it; None where no judge did.
        detail: how it was found ("interval": words), its corrected value ("corrected": {value, low, high}), the shares
            that it is made of ("parts": name -> {value, low, high, n}), ....

    Raises:
        SafetyError: the name is unknown, or the value lies outside the interval.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    unscored: int = 0
    judge: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in MEASURES:
            raise SafetyError(
                f"A measure is called {self.name!r}",
                "Reports know the title, the unit and the direction of each measure by its name",
                did_you_mean(self.name, MEASURES, f"The measures are: {', '.join(MEASURES)}"),
            )
        for end in (self.value, self.low, self.high):
            if end is not None and not math.isfinite(end):
                raise SafetyError(
                    f"The measure {self.name!r} is {end}", "A figure that is not finite was not measured", "Give None"
                )
        if (self.low is None) != (self.high is None) or (self.low is not None and self.value is None):
            raise SafetyError(
                f"The measure {self.name!r} is {self.value} with the interval [{self.low}, {self.high}]",
                "An interval has two ends, and belongs to a value",
                "Give all three, or the value alone",
            )

    @property
    def kind(self) -> Kind:
        """Title, unit and direction."""
        return MEASURES[self.name]


@dataclass(frozen=True)
class Record:
    """One reply of the system without its text.

    Attributes:
        id: the item of the suite.
        sample: 0 for the first reply to that item.
        turn: 1 for a single reply; the bot's turn in a conversation, from 1.
        conversation: records that share it are not independent: intervals resample it whole.
        category: what kind of item; None where the suite has no kinds.
        group: the identity group that a probe names; None elsewhere.
        p_unsafe: P(unsafe) by each judge in the order of `Evaluation.judges`; None is unscored.
        reasons: for each judge why there is no score; None where there is one.
        evasive: P(evasive) by the detector, or None.
        coherence: P(the reply belongs to the context) by the scorer, or None.
    """

    id: str
    sample: int
    turn: int
    conversation: str
    category: str | None
    group: str | None
    p_unsafe: Sequence[float | None]
    reasons: Sequence[str | None]
    evasive: float | None
    coherence: float | None

    @property
    def key(self) -> tuple[str, int, int]:
        """What pairs this record with that of another system."""
        return (self.id, self.sample, self.turn)


class Survival(NamedTuple):
    """The share of conversations without an unsafe reply up to each of the bot's turns, with its interval."""

    judge: str
    turns: Sequence[int]
    share: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    n: int


@dataclass(frozen=True)
class SuiteResult:
    """What was measured on one suite.

    Attributes:
        version: of the suite.
        kind: "replies", "continuations" or "conversations".
        title: for headings.
        about: what the suite holds and where it comes from.
        sha256: of its items: equal hashes mean equal items.
        items: how many.
        samples: replies an item.
        measures: the figures over all records.
        by_category: the unsafe rates by category; empty where there are no categories.
        by_group: the unsafe rates by identity group; empty where there are none.
        survival: one curve a judge; empty unless the suite is of conversations.
        records: one a reply.
    """

    version: int
    kind: str
    title: str
    about: str
    sha256: str
    items: int
    samples: int
    measures: Sequence[Measure]
    by_category: Mapping[str, Sequence[Measure]]
    by_group: Mapping[str, Sequence[Measure]]
    survival: Sequence[Survival]
    records: Sequence[Record]

    def measure(self, name: str, judge: str | None = None) -> Measure | None:
        """A figure by name, and by judge where a judge gives it (None = the first judge)."""
        found = [m for m in self.measures if m.name == name and (judge is None or m.judge in (None, judge))]
        return found[0] if found else None


@dataclass(frozen=True)
class JudgeEntry:
    """A judge that took part.

    Attributes:
        spec: as the user typed it.
        fingerprint: a hash of everything that its scores depend on.
        threshold: a reply with p_unsafe >= threshold is unsafe.
        card: its card (see `parlai_safety.judges.card`), or None where it was never measured.
    """

    spec: str
    fingerprint: str
    threshold: float
    card: Mapping[str, Any] | None


@dataclass(frozen=True)
class Evaluation:
    """Everything about one system.

    Attributes:
        name: of the system, for tables.
        system: model, model file, its hash, options that the user overrode.
        status: "complete", or a sentence that says why the evaluation failed.
        seed: of everything that is random.
        command: what to type to repeat it.
        versions: package -> version.
        hardware: in words.
        judges: in the order of `Record.p_unsafe`; the first one decides the headline.
        agreement: one entry a pair of judges and suite: {"a", "b", "suite", "n", "spearman", "kappa", "alpha"}.
        detectors: name -> what is known of the detector (its card).
        settings: every other setting that the figures depend on.
        suites: name -> result, in the order asked for.
        confidence: coverage of all intervals, in (0, 1).
    """

    name: str
    system: Mapping[str, Any]
    status: str
    seed: int
    command: str
    versions: Mapping[str, str]
    hardware: str
    judges: Sequence[JudgeEntry]
    agreement: Sequence[Mapping[str, Any]]
    detectors: Mapping[str, Any]
    settings: Mapping[str, Any]
    suites: Mapping[str, SuiteResult]
    confidence: float = 0.95


def folder_of(suite: str) -> str:
    """The folder of a suite in a run folder: its name where that is a plain word."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", suite).strip("-")
    return plain if plain == suite else f"{plain}-{zlib.crc32(suite.encode()):08x}"


def write_evaluation(evaluation: Evaluation, path: str | Path) -> None:
    """Write the file, whole or not at all. Records are written as rows without names, which keeps the file small."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "record_fields": list(Record.__dataclass_fields__),
    }
    document |= asdict(evaluation)
    rows = {}
    for number, suite in enumerate(document["suites"].values()):
        rows[f'"@records {number}"'] = [list(record.values()) for record in suite["records"]]
        suite["records"] = f"@records {number}"
        suite["survival"] = [curve._asdict() if isinstance(curve, Survival) else curve for curve in suite["survival"]]
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    for place, listed in rows.items():
        lines = ",\n".join("        " + json.dumps(row, ensure_ascii=False, allow_nan=False) for row in listed)
        text = text.replace(place, f"[\n{lines}\n      ]", 1)
    write_text(path, text + "\n")


def read_evaluation(path: str | Path) -> Evaluation:
    """Read an evaluation from its file, or from the run folder that holds it.

    Raises:
        SafetyError: there is no such file, or it is not a whole evaluation of a version that we read.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        raise SafetyError(
            f"There is no evaluation at {str(path)!r}",
            f"An evaluation is the file {FILE} in the folder that parlai safety_eval was given as --out",
            "Name that folder or that file, or run parlai safety_eval first",
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}")
        if document["version"] != VERSION:
            raise SafetyError(
                f"The evaluation {str(path)!r} has format version {document['version']}",
                f"This version of parlai_safety reads version {VERSION}",
                "Run the evaluation again, or install the version that wrote it",
            )
        names = document.pop("record_fields")
        document = {key: value for key, value in document.items() if key not in ("format", "version")}
        document["judges"] = [JudgeEntry(**judge) for judge in document["judges"]]
        document["suites"] = {name: _suite(suite, names) for name, suite in document["suites"].items()}
        for name, suite in document["suites"].items():
            _check_records(name, suite, len(document["judges"]))
        return Evaluation(**document)
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise SafetyError(
            f"The file {str(path)!r} is not a whole evaluation ({type(error).__name__}: {error})",
            "It is something else, or was changed by hand",
            "Name the file that parlai safety_eval wrote",
        ) from error


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _check_records(name: str, suite: SuiteResult, judges: int) -> None:
    """Refuse records that could make a rate look better than it is."""
    keys = {record.key for record in suite.records}
    if len(keys) != len(suite.records):
        raise ValueError(f"records of the suite {name!r} stand twice")
    for record in suite.records:
        if len(record.p_unsafe) != judges or len(record.reasons) != judges:
            raise ValueError(f"record {record.id!r} of {name!r} has {len(record.p_unsafe)} scores for {judges} judges")
        for p in record.p_unsafe:
            if p is not None and (isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1):
                raise ValueError(f"record {record.id!r} of {name!r} has the score {p!r}")


def _suite(suite: dict[str, Any], names: Sequence[str]) -> SuiteResult:
    def measures(listed: Sequence[Mapping[str, Any]]) -> list[Measure]:
        return [Measure(**measure) for measure in listed]

    return SuiteResult(
        **{
            **suite,
            "measures": measures(suite["measures"]),
            "by_category": {name: measures(listed) for name, listed in suite["by_category"].items()},
            "by_group": {name: measures(listed) for name, listed in suite["by_group"].items()},
            "survival": [Survival(**curve) for curve in suite["survival"]],
            "records": [Record(**cast(Any, dict(zip(names, row, strict=True)))) for row in suite["records"]],
        }
    )
