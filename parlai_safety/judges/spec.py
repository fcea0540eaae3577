"""One grammar that names any judge, wherever a judge is asked for.

A judge is written `name` or `name:argument`, and judges are joined by `+`: `linear:judges/a.npz+wordlist` is unsafe
where either part says so. The names stand in a small registry here, each with the function that loads it, so that a
judge's own imports happen only when it is asked for. Nothing else is configurable in the text form: a judge that
needs more than one argument is made in Python.

Another package adds judges of its own by entry points of the group `parlai_safety.judges`, as in its pyproject.toml

    [project.entry-points."parlai_safety.judges"]
    myjudge = "mypackage.judges:load"

where `load(argument, threshold, datapath)` returns a `Judge`, as in `Entry.loader`. A name of ours cannot be replaced.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from typing import Literal, NamedTuple, cast

from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.judges.combined import CombinedJudge
from parlai_safety.judges.verdict import Judge, check_threshold

ENTRY_POINTS = "parlai_safety.judges"


class Part(NamedTuple):
    """One judge of a specification: its registered name, and what stands after the colon (None without a colon)."""

    name: str
    argument: str | None


class Entry(NamedTuple):
    """A registered judge.

    Attributes:
        loader: "module:function"; the function takes the argument, the threshold (None = the judge's own) and ParlAI's
            datapath (None = ParlAI's own), and returns a `Judge`.
        argument: whether something must, may or must not stand after the colon.
        form: how the judge is written.
        description: one line for the listing.
    """

    loader: str
    argument: Literal["required", "optional", "none"]
    form: str
    description: str


REGISTRY: dict[str, Entry] = {
    "contradiction": Entry(
        "parlai_safety.judges.contradiction:load_spec",
        "required",
        "contradiction:FILE",
        "whether a bot's reply contradicts its own earlier turns, by overlaps of words; nothing else",
    ),
    "guard": Entry(
        "parlai_safety.judges.guard:load_spec",
        "required",
        "guard:NAME_OR_PATH",
        "a generative guard model of Hugging Face, by the probability of its first word",
    ),
    "hf": Entry(
        "parlai_safety.judges.hf:load_spec",
        "required",
        "hf:NAME_OR_PATH",
        "any sequence classifier of Hugging Face, by its folder or its name on the hub",
    ),
    "linear": Entry(
        "parlai_safety.judges.linear:load_spec",
        "required",
        "linear:FILE",
        "a logistic regression over words, characters and context, trained by this package",
    ),
    "parlai": Entry(
        "parlai_safety.judges.parlai_model:load_spec",
        "required",
        "parlai:MODEL_FILE",
        "any ParlAI classifier, by its model file or its zoo: name",
    ),
    "perspective": Entry(
        "parlai_safety.judges.perspective:load_spec",
        "optional",
        "perspective[:CACHE_FILE]",
        "Google's toxicity scores, which end after 31 December 2026; reads the reply alone",
    ),
    "topics": Entry(
        "parlai_safety.judges.topics:load_spec",
        "required",
        "topics:FILE[#TOPIC:TOPIC]",
        "whether a text is on a sensitive topic, which is not the same as unsafe; names the topic too",
    ),
    "toxicity": Entry(
        "parlai_safety.judges.toxicity:load_spec",
        "required",
        "toxicity:FILE",
        "a local scorer of toxicity, trained by this package to agree with Perspective's scores",
    ),
    "turns": Entry(
        "parlai_safety.judges.turns:load_spec",
        "required",
        "turns:FILE",
        "a recurrent network over all turns of the talk and their speakers, trained by this package",
    ),
    "wordlist": Entry(
        "parlai_safety.judges.wordlist:load_spec",
        "optional",
        "wordlist[:FILE]",
        "unsafe where a listed word stands in the reply; near chance on real adversarial talk",
    ),
    "zoo": Entry(
        "parlai_safety.judges.parlai_model:load_zoo_spec",
        "required",
        "zoo:NAME",
        "a judge of our registry, as zoo:safety/NAME, or a classifier of ParlAI's zoo",
    ),
}

# What stands after the colon, where that is no file.
_WANTED = {"guard": "model", "hf": "model", "zoo": "model"}

# A plus inside a file name must not split it, so only one that a name, another plus or the end follows does.
_JOIN = re.compile(r"\s*\+\s*(?=[A-Za-z_]*\s*(?::|\+|$))")


def known_judges() -> dict[str, str]:
    """The registered judges, ours and those of other packages: how each is written, and one line about it."""
    return {entry.form: entry.description for _, entry in sorted((_from_others() | REGISTRY).items())}


def parse(spec: str) -> list[Part]:
    """Take a specification apart.

    Args:
        spec: one or more judges joined by `+`, as in `linear:a.npz+wordlist`. A `+` separates judges where a word of
            letters and then `:`, `+` or the end follows it, so `linear:a+b/c.npz` is one judge.

    Returns:
        The parts in the order written, at least one.

    Raises:
        SafetyError: a part is empty, its name is unknown, or its argument is missing or not wanted.
    """
    return [_part(text.strip(), spec) for text in _JOIN.split(spec)]


def load_judge(spec: str, *, threshold: float | None = None, datapath: str | None = None) -> Judge:
    """Load the judge that a specification names.

    Args:
        spec: see `parse`.
        threshold: replaces the judge's own threshold; strictly between 0 and 1. For `A+B` it stands on the common
            scale of `parlai_safety.judges.combined`, and the parts keep their own.
        datapath: ParlAI's data folder, for models of the zoo; None = ParlAI's default.

    Returns:
        The judge, ready to score.

    Raises:
        SafetyError: the specification is wrong, a file is missing or not a judge, or the threshold is out of range.
    """
    parts = parse(spec)
    if threshold is not None:
        check_threshold(threshold)
    if len(parts) == 1:
        return _load(parts[0], threshold, datapath)
    return CombinedJudge([_load(part, None, datapath) for part in parts], 0.5 if threshold is None else threshold)


def _part(text: str, spec: str) -> Part:
    if not text:
        raise SafetyError(
            f"The judge {spec!r} has an empty part",
            "Judges are joined by a single '+' with a name on both sides",
            "Write for instance 'linear:judge.npz+wordlist'",
        )
    name, colon, argument = text.partition(":")
    entry = _entry(name)
    if entry is None:
        known = ", ".join(known_judges())
        near = did_you_mean(name, _from_others() | REGISTRY, "Use one of them")
        raise SafetyError(f"There is no judge called {name!r} (in {spec!r})", f"The known judges are {known}", near)
    if colon and entry.argument == "none":
        raise SafetyError(f"The judge {text!r} has an argument", f"{name!r} takes none", f"Write it as {entry.form!r}")
    if not argument and (colon or entry.argument == "required"):
        raise SafetyError(
            f"The judge {text!r} names no {_WANTED.get(name, 'file')}",
            f"{name!r} is written {entry.form!r}",
            f"Write the {_WANTED.get(name, 'file')} after '{name}:'",
        )
    return Part(name, argument if colon else None)


def _entry(name: str) -> Entry | None:
    """A judge by its name; other packages are looked at only where the name is not ours."""
    return REGISTRY.get(name) or _from_others().get(name)


def _from_others() -> dict[str, Entry]:
    """The judges that other installed packages bring, by name."""
    found = {}
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        package = f"the package {point.dist.name}" if point.dist else "another package"
        form, line = f"{point.name}[:ARGUMENT]", f"a judge of {package}, loaded by {point.value}"
        found[point.name] = Entry(point.value, "optional", form, line)
    return found


def _load(part: Part, threshold: float | None, datapath: str | None) -> Judge:
    entry = cast(Entry, _entry(part.name))
    module, _, function = entry.loader.partition(":")
    if part.name in REGISTRY:
        loader = getattr(importlib.import_module(module), function)
        return cast(Judge, loader(part.argument, threshold, datapath))
    try:
        judge = getattr(importlib.import_module(module), function)(part.argument, threshold, datapath)
    except SafetyError:
        raise
    except Exception as error:
        raise SafetyError(
            f"The judge {part.name!r} cannot be loaded ({type(error).__name__}: {str(error)[:200]})",
            f"It is registered by another package, whose function {entry.loader} failed",
            "Mend that package or tell its authors; our own judges do not need it",
        ) from error
    lacking = [name for name in ("spec", "threshold", "fingerprint", "score") if not hasattr(judge, name)]
    if lacking:
        raise SafetyError(
            f"The judge {part.name!r} is a {type(judge).__name__} without {', '.join(lacking)}",
            f"What {entry.loader} returns must follow the protocol parlai_safety.judges.Judge",
            "Mend that package or tell its authors; our own judges do not need it",
        )
    return cast(Judge, judge)
