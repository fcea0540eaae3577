"""The card of a model of the zoo: Markdown, made from its registry entry and its evaluation file alone.

The sections follow Mitchell et al. (2019, arXiv:1810.03993). Every one of them is required: a card with an empty
section is refused, so that nothing is published without its limits or without its numbers, and so is one of another
model, judge or seed. A figure stands with its n, its interval and the number of replies that could not be scored; a
figure without an interval says so, and a card of nothing but such figures is refused too. `check_zoo`
compares every committed card with what its evaluation file gives today. Left out: measuring (`parlai_safety.loops.zoo`)
and an estimate of the energy used, which nothing here measures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from parlai_safety import resources, zoo
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.results import MEASURES, Evaluation
from parlai_safety.files import write_json, write_text
from parlai_safety.zoo.store import identity

FORMAT, VERSION = "parlai_safety zoo evaluation", 1
FILE = "evaluation.json"

SECTIONS = (
    "Task",
    "Intended use",
    "Limits and what it is not for",
    "Training data",
    "Evaluation",
    "The judge and its own errors",
    "Time and energy",
    "Version",
    "Citation",
)

ROUNDING = 1e-9  # by which a value may lie outside its interval

Figure = dict[str, Any]


# --- from a measurement to the evaluation file ----------------------------------------------------------------------


def evaluation_of_generator(entry: zoo.Entry, evaluation: Evaluation) -> dict[str, Any]:
    """What of an evaluation by suites the card needs; the figures are unchanged.

    Args:
        entry: the model's.
        evaluation: by one judge, which has a card.
    """
    (judge,) = evaluation.judges
    figures, remarks = [], []
    for suite in evaluation.suites.values():
        for measure in suite.measures:
            on = f"{suite.title.lower()}, {suite.items} contexts"
            ends = (measure.low, measure.high)
            figures.append(_figure(MEASURES[measure.name].title, on, measure.value, ends, measure.n, measure.unscored))
            corrected, why_not = measure.detail.get("corrected"), measure.detail.get("uncorrected")
            if why_not:
                remarks.append(
                    f"The share of unsafe replies on {on} is not corrected for the judge's errors: {why_not}."
                )
            if corrected:
                title = f"{MEASURES[measure.name].title}, corrected for the judge's errors"
                ends = (corrected["low"], corrected["high"])
                figures.append(_figure(title, on, corrected["value"], ends, measure.n, measure.unscored))
    card = judge.card or {}
    return {
        **_head(entry),
        "command": evaluation.command,
        "seed": evaluation.seed,
        "measured_on": [
            {"name": name, "about": suite.about, "items": suite.items, "sha256": suite.sha256}
            for name, suite in evaluation.suites.items()
        ],
        "figures": figures,
        "remarks": remarks,
        "judge": {
            "spec": judge.spec,
            "fingerprint": judge.fingerprint,
            "threshold": judge.threshold,
            "measured_on": card.get("measured_on", {}).get("name"),
            "figures": _judge_figures(card) if card else [],
            "warnings": card.get("warnings", []),
        },
        "trained_on": None,
    }


def evaluation_of_judge(entry: zoo.Entry, card: Mapping[str, Any]) -> dict[str, Any]:
    """What of a judge's own card (see `parlai_safety.judges.card`) the card of the model needs."""
    measured = card["measured_on"]
    return {
        **_head(entry),
        "command": f"parlai safety_judge_card --judge {entry.zoo_path}",
        "seed": None,
        "measured_on": [{"name": measured["name"], "items": measured["n"], "files": measured["files"]}],
        "figures": _judge_figures(card),
        "remarks": [],
        "judge": {
            "spec": entry.zoo_path,
            "fingerprint": card["fingerprint"],
            "threshold": card["threshold"],
            "measured_on": measured["name"],
            "agreement": card.get("agreement_with_other_judge_labelled_bot_turns"),
            "figures": [],
            "warnings": card["warnings"],
        },
        "trained_on": card["trained_on"],
    }


def _head(entry: zoo.Entry) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, "name": entry.name, "entry_version": entry.version}


def _figure(
    name: str, on: str, value: float | None, ends: Sequence[float | None] | None, n: int, unscored: int
) -> Figure:
    low, high = ends or (None, None)
    return {"name": name, "on": on, "value": value, "low": low, "high": high, "n": n, "unscored": unscored}


def _judge_figures(card: Mapping[str, Any]) -> list[Figure]:
    """A judge's error rates on the bot's labelled replies, and on ordinary talk."""
    labelled, everything = card["quality_labelled_bot_turns"], card["quality"]
    counts = {"AUC": labelled["unsafe"] + labelled["safe"], "sensitivity": labelled["unsafe"]}
    counts["specificity"] = labelled["safe"]
    found = [
        _figure(
            name, "labelled bot turns", labelled[name.lower()], labelled[f"{name.lower()}_interval"], n,
            labelled["unscored"],
        )
        for name, n in counts.items()
    ]  # fmt: skip
    flagged, ends = everything["ordinary_false_positive_rate"], everything["ordinary_false_positive_interval"]
    found.append(_figure("ordinary talk flagged", "ordinary talk", flagged, ends, everything["ordinary"], 0))
    return found


# --- from the evaluation file to the card ---------------------------------------------------------------------------


def read_measured(path: Path) -> dict[str, Any]:
    """Read an evaluation file of the zoo.

    Raises:
        SafetyError: there is none, or it is something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = (document["format"], document["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SafetyError(
            f"There is no whole evaluation at {str(path)!r} ({type(error).__name__})",
            "A card is made from what a build has measured, and from nothing else",
            "Build the model first: parlai safety_zoo build NAME",
        ) from error
    if found != (FORMAT, VERSION):
        raise SafetyError(
            f"The evaluation {str(path)!r} is {found[0]!r} version {found[1]!r}",
            f"This version of parlai_safety reads {FORMAT!r} version {VERSION}",
            "Build the model again: parlai safety_zoo build NAME --again true",
        )
    return dict(document)


def card_of_model(entry: zoo.Entry, measured: Mapping[str, Any]) -> str:
    """The card, as Markdown.

    Args:
        entry: the model's.
        measured: its evaluation file.

    Raises:
        SafetyError: a required section is empty, the file is of another model, version, judge or seed, or a figure
            cannot be right or has no number.
    """
    if (measured.get("name"), measured.get("entry_version")) != (entry.name, entry.version):
        raise SafetyError(
            f"The evaluation is of {measured.get('name')!r} version {measured.get('entry_version')!r}",
            f"The card is to be of {entry.name!r} version {entry.version!r}",
            f"Build that one: parlai safety_zoo build {entry.name} --again true",
        )
    try:
        sections = dict(zip(SECTIONS, _sections(entry, measured), strict=True))
        empty = [heading for heading, text in sections.items() if not text.strip()]
        faults = [] if empty else list(_faults(entry, measured))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SafetyError(
            f"The evaluation of {entry.name!r} lacks a field or has another kind of thing in it "
            f"({type(error).__name__}: {error})",
            "A card is made from every field that a build writes, and none is guessed",
            f"Build the model again: parlai safety_zoo build {entry.name} --again true",
        ) from error
    if empty:
        raise SafetyError(
            f"The card of {entry.name!r} has nothing under {', '.join(map(repr, empty))}",
            "A model without its limits, its numbers or its origin is not published",
            "Fill the entry in zoo/registry.json, or build again so that the evaluation has what is missing",
        )
    if faults:
        raise SafetyError(
            f"The evaluation of {entry.name!r} is not fit for a card: {'; '.join(faults)}",
            "A card says what was measured of this very model, by the judge of its entry, with n and interval",
            f"Build the model again: parlai safety_zoo build {entry.name} --again true",
        )
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("parlai_safety.evaluation", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # it is Markdown, of our own registry and figures
    )
    summary = f"`{entry.zoo_path}` · {entry.kind} · version {entry.version} · {entry.licence}"
    template = environment.get_template("model_card.md.j2")
    return template.render(title=entry.name, summary=summary, sections=sections).strip() + "\n"


def write_card_of_model(entry: zoo.Entry, measured: Mapping[str, Any], folder: Path) -> Path:
    """Write NAME.md, and NAME.json that it was made from, into a folder; returns the card's path."""
    text = card_of_model(entry, measured)
    write_json(folder / f"{entry.name}.json", dict(measured))
    write_text(folder / f"{entry.name}.md", text)
    return folder / f"{entry.name}.md"


def _sections(entry: zoo.Entry, measured: Mapping[str, Any]) -> Iterator[str]:
    """The texts of `SECTIONS`, in their order; empty where something is missing."""
    manifest = measured.get("manifest") or {}
    yield entry.task
    yield entry.intended_use
    yield _listed(entry.limits)
    yield "\n\n".join(_training_data(entry, measured, manifest))
    yield "\n\n".join(_evaluation(measured, manifest))
    yield "\n\n".join(_judge(entry, measured))
    yield "\n\n".join(_time(manifest))
    yield "\n\n".join(_version(entry, measured, manifest))
    yield entry.citation


def _training_data(entry: zoo.Entry, measured: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[str]:
    if not manifest.get("data"):
        return
    yield entry.training_data
    yield f"**Content.** {entry.content_warning}"
    yield f"**Licence.** {entry.licence}"
    counts = (measured.get("trained_on") or {}).get("by_source") or {}
    if counts:
        rows = [[name, str(c["safe"]), str(c["unsafe"])] for name, c in sorted(counts.items())]
        yield _table(("source", "safe", "unsafe"), rows)
    yield "Files that the job read (SHA-256; a model learns from those of the training split alone):\n\n" + _listed(
        f"`{name}` {digest}" for name, digest in manifest["data"].items()
    )


def _evaluation(measured: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[str]:
    figures = measured.get("figures") or []
    if not figures or not manifest.get("hardware"):
        return
    yield _figures_table(figures)
    yield (
        'Intervals are of 95 %. "None" stands where a measure of the whole set of replies has no interval; "unscored" '
        "where nothing could be scored, which is never counted as safe."
    )
    yield from measured["remarks"]
    for part in measured["measured_on"]:
        about = f" {part['about']}" if "about" in part else ""
        mark = f" SHA-256 of the items {part['sha256']}." if "sha256" in part else ""
        yield f"Measured on **{part['name']}**, {part['items']} items.{about}{mark}"
    seed = "" if measured["seed"] is None else f", seed {measured['seed']}"
    yield f"Command: `{measured['command']}`{seed}. Hardware: {manifest['hardware']}."


def _judge(entry: zoo.Entry, measured: Mapping[str, Any]) -> Iterator[str]:
    judge = measured.get("judge") or {}
    if not judge.get("measured_on") or (entry.kind != "judge" and not judge.get("figures")):
        return
    threshold = f"threshold {judge['threshold']:.4f}, fingerprint `{judge['fingerprint'][:16]}`"
    if entry.kind == "judge":
        yield (
            f"The model is itself a judge ({threshold}). Its errors are the figures above, against the labels of the "
            "corpus's authors; no other judge took part, and no further person looked at its verdicts."
        )
        agreement = judge.get("agreement")
        if agreement:
            yield (
                f"With the judge of the other half it agrees on {agreement['n']} labelled bot turns with a rank "
                f"correlation of {agreement['spearman']:.3f} (Spearman) and a kappa of {agreement['kappa']:.3f}."
            )
    else:
        yield f"Unsafe means: `{judge['spec']}` says so ({threshold}). Measured on {judge['measured_on']}, it errs so:"
        yield _figures_table(judge["figures"])
        yield (
            "The judge labelled nothing that this model learned from. Both learned from labels of the same corpus, so "
            "it is not independent of the corpus's authors. No person judged these replies."
        )
    if judge.get("warnings"):
        yield "Be careful:\n\n" + _listed(judge["warnings"])


def _time(manifest: Mapping[str, Any]) -> Iterator[str]:
    if not manifest.get("seconds"):
        return
    spent = "; ".join(f"{what}: {_duration(seconds)}" for what, seconds in manifest["seconds"].items())
    yield f"{spent[0].upper()}{spent[1:]}, on {manifest['hardware']}. The energy was not measured."


def _version(entry: zoo.Entry, measured: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[str]:
    if not manifest.get("files"):
        return
    recipe = manifest["recipe"]
    named = f", recipe `{recipe['recipe']}`" if recipe["recipe"] else ""
    yield (
        f"Version {entry.version}, built {manifest['time'][:10]} by `{manifest['command']}` (job `{recipe['job']}`"
        f"{named}, seed {manifest['seed']}, {manifest['threads']} thread{'s' if manifest['threads'] > 1 else ''})."
    )
    differing = measured.get("second_build")
    if differing is None:
        yield "Whether a second build gives the same bytes was not tried."
    elif differing:
        yield f"A second build on the same machine gave other bytes in {', '.join(differing)}."
    else:
        yield (
            "A second build from nothing on the same machine gave the same bytes in every file. On another machine, or "
            "with other versions, the last digits of sums may differ."
        )
    rows = [[f"`{name}`", str(file["size"]), f"`{file['sha256']}`"] for name, file in manifest["files"].items()]
    yield _table(("file", "bytes", "SHA-256"), rows)
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()) + "."


def _faults(entry: zoo.Entry, measured: Mapping[str, Any]) -> Iterator[str]:
    """What in an evaluation file is of something else, or cannot be right."""
    manifest, judge, figures = measured["manifest"], measured["judge"], measured["figures"]
    if manifest["entry"] != identity(entry):
        yield f"its manifest is of {manifest['entry']}"
    if not str(manifest["command"]).startswith(f"parlai safety_zoo build {entry.name}"):
        yield f"it was built by {manifest['command']!r}"
    if measured["seed"] not in (None, manifest["seed"]):
        yield f"it was measured with seed {measured['seed']} and built with {manifest['seed']}"
    wanted = f"zoo:safety/{entry.build.judged_by}" if entry.build and entry.build.judged_by else entry.zoo_path
    if judge["spec"] != wanted:
        yield f"it was judged by {judge['spec']!r} and not by {wanted!r}"
    if not measured["command"]:
        yield "it has no command"
    if not measured["measured_on"]:
        yield "it does not say on what it was measured"
    for figure in [*figures, *judge["figures"]]:
        yield from _wrong_with_figure(figure)
    if all(figure["value"] is None for figure in figures):
        yield "nothing could be scored"
    elif all(figure["low"] is None for figure in figures):
        yield "no figure has an interval"


def _wrong_with_figure(figure: Figure) -> Iterator[str]:
    where, value, ends = f"{figure['name']} on {figure['on']}", figure["value"], (figure["low"], figure["high"])
    numbers = [number for number in (value, *ends) if number is not None]
    if not all(math.isfinite(number) for number in numbers):
        yield f"{where} has a number that is none"
    elif ends.count(None) == 1 or (value is None and numbers):
        yield f"{where} has half an interval, or one of nothing"
    elif len(numbers) == 3 and not numbers[1] - ROUNDING <= value <= numbers[2] + ROUNDING:
        yield f"{where} is {value} outside its interval {list(ends)}"
    if value is not None and not figure["n"] > 0:
        yield f"{where} is {value} with n {figure['n']}"


def _figures_table(figures: Sequence[Figure]) -> str:
    rows = []
    for figure in figures:
        value, low, high = figure["value"], figure["low"], figure["high"]
        ends = "none" if low is None else f"[{low:.3f}, {high:.3f}]"
        shown = "unscored" if value is None else f"{value:.3f}"
        rows.append([figure["name"], figure["on"], shown, ends, str(figure["n"]), str(figure["unscored"])])
    return _table(("measure", "on", "value", "interval", "n", "unscored"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _listed(items: Any) -> str:
    return "\n".join(f"- {item}" for item in items)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


# --- the check ------------------------------------------------------------------------------------------------------


def check_zoo() -> list[str]:
    """What is wrong with the registry and its cards, a sentence each; empty where nothing is.

    Raises:
        SafetyError: the registry itself cannot be read.
    """
    models = zoo.registry()
    folder = resources.folder("zoo")
    found: list[str] = []
    for entry in models.values():
        judge = entry.build.judged_by if entry.build else None
        if judge is not None and (judge not in models or models[judge].kind != "judge"):
            found.append(f"The entry {entry.name!r} is judged by {judge!r}, which is no judge of the registry.")
        if entry.card is None:
            if entry.build is not None:
                found.append(f"The entry {entry.name!r} is built here and has no card.")
            continue
        found += _wrong_with_card(entry, folder / entry.card)
    cards = {entry.card for entry in models.values()}
    for path in sorted((folder / "cards").glob("*.md")):
        if f"cards/{path.name}" not in cards:
            found.append(f"The card {path.name} belongs to no entry.")
    return found


def _wrong_with_card(entry: zoo.Entry, path: Path) -> Iterator[str]:
    if not path.is_file():
        yield f"The card of {entry.name!r}, {entry.card}, is not there."
        return
    try:
        measured = read_measured(path.with_suffix(".json"))
        text = card_of_model(entry, measured)
    except SafetyError as error:
        yield str(error)
        return
    if entry.build is not None and measured["manifest"]["seed"] != entry.build.seed:
        yield f"The card of {entry.name!r} is of seed {measured['manifest']['seed']}, not {entry.build.seed}."
    if text != path.read_text(encoding="utf-8"):
        yield f"The card of {entry.name!r} is not what its evaluation and the registry give today."
