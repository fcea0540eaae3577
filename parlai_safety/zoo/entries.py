"""The registry of the zoo, `zoo/registry.json`: read, and checked field by field while it is read.

An entry either has addresses, each with a SHA-256 and a size (null where nobody has published them, and then the
download is refused unless the user accepts it), or a recipe by which anybody builds it from the corpus that ships.
Left out: anything that was measured here, which stands in the evaluation file beside the entry's card.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from parlai_safety import resources
from parlai_safety.errors import SafetyError, did_you_mean

FORMAT, VERSION, FILE = "parlai_safety zoo", 1, "registry.json"
KINDS = ("classifier", "generator", "judge")
TEXTS = ("task", "intended_use", "training_data", "licence", "content_warning", "citation")

_NAME = re.compile(r"[a-z0-9_]+")  # ParlAI makes a Python module's name of it
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Remote:
    """A file to download.

    Attributes:
        url: http or https.
        sha256: of its bytes, 64 hexadecimal digits; None where nobody has published one.
        size: bytes; None where it is not known.
        unpack: None for a file that is used as it is; of a tar archive "all" for everything, "flat" for everything
            without its folders, or "FOLDER/" for what lies in that folder.
    """

    url: str
    sha256: str | None
    size: int | None
    unpack: str | None

    @property
    def name(self) -> str:
        """The file's name, the last part of the address."""
        return PurePosixPath(self.url.partition("?")[0]).name


@dataclass(frozen=True)
class Recipe:
    """How an entry is built.

    Attributes:
        job: a job of `parlai_safety.loops.zoo`.
        recipe: the job's recipe, a name in `projects/`; None for a job without one.
        take: what of the job's run is the model: a system's folder, or a judge.
        seed: of everything that is random.
        threads: of PyTorch; sums in another number of threads differ in their last digits.
        judged_by: the entry that judges a generator; None for a judge.
        limit: at most so many contexts of each suite in the evaluation.
    """

    job: str
    recipe: str | None
    take: str
    seed: int
    threads: int
    judged_by: str | None
    limit: int


@dataclass(frozen=True)
class Published:
    """A figure that the publishers of a model report; it was not measured here.

    Attributes:
        name: of the measure.
        on: what it was measured on.
        value: a share in [0, 1], or a number of the measure's own unit.
        n: number of examples.
        source: where it is published.
        low: lower end of its interval; None where none is published.
        high: upper end; None exactly where `low` is.
    """

    name: str
    on: str
    value: float
    n: int
    source: str
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        name: lower-case letters, digits and underscores.
        version: rises when the files or the recipe change.
        kind: "judge" (a file of ours), "classifier" or "generator" (ParlAI model files).
        model: the main file, which `zoo:safety/NAME` alone means for a judge.
        task: what it does.
        intended_use: what it is for.
        limits: what it cannot do and is not for, a sentence each.
        training_data: what it learned from.
        licence: of the files.
        content_warning: what kind of talk it has seen, or may produce.
        citation: of the method and the data.
        card: its card, a path in `zoo/`; None where nothing was measured here.
        download: the files to fetch; empty for a model that is built.
        build: its recipe; None for a model that is downloaded.
        published: what its publishers report.
        context_turns: of a classifier, how many turns it was trained to read, the reply included; None for others.
    """

    name: str
    version: str
    kind: str
    model: str
    task: str
    intended_use: str
    limits: tuple[str, ...]
    training_data: str
    licence: str
    content_warning: str
    citation: str
    card: str | None
    download: tuple[Remote, ...]
    build: Recipe | None
    published: tuple[Published, ...]
    context_turns: int | None

    @property
    def verified(self) -> bool:
        """Whether every file to download has a known checksum; true of what is built."""
        return all(remote.sha256 is not None for remote in self.download)

    @property
    def size(self) -> int | None:
        """Bytes to download; None where a size is not known or nothing is downloaded."""
        sizes = [remote.size for remote in self.download]
        return None if not sizes or None in sizes else sum(size for size in sizes if size is not None)

    @property
    def zoo_path(self) -> str:
        """What a user types: the main file as a model file, or the judge."""
        return f"zoo:safety/{self.name}" if self.kind == "judge" else f"zoo:safety/{self.name}/{self.model}"


def registry() -> dict[str, Entry]:
    """The entries by name, in the order of the file.

    Raises:
        SafetyError: the file is damaged, or a field of an entry is missing, unknown or of the wrong kind.
    """
    path = resources.folder("zoo") / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = (document["format"], document["version"])
        models = dict(document["models"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SafetyError(
            f"The registry {str(path)!r} cannot be read ({type(error).__name__}: {error})",
            "It is one JSON object with format, version and models",
            "Install the package again, or mend the file",
        ) from error
    if found != (FORMAT, VERSION):
        raise SafetyError(
            f"The registry {str(path)!r} is {found[0]!r} version {found[1]!r}",
            f"This version of parlai_safety reads {FORMAT!r} version {VERSION}",
            "Install the package again",
        )
    return {name: _entry(name, content) for name, content in models.items()}


def entry(name: str) -> Entry:
    """An entry by its name.

    Raises:
        SafetyError: there is none; near names are suggested.
    """
    models = registry()
    if name not in models:
        raise unknown_model(name)
    return models[name]


def unknown_model(name: str) -> SafetyError:
    """The error for a name that is not in the registry; it tells which names are."""
    models = registry()
    return SafetyError(
        f"zoo:safety/{name} is not in the registry",
        f"The registry lists {', '.join(models) or 'no model yet'}",
        did_you_mean(name, models, "`parlai safety_zoo list` tells what each of them is"),
    )


class _Fields:
    """The fields of one JSON object; each is taken once, and none may be left over."""

    def __init__(self, where: str, content: Any) -> None:
        self.where = where
        if not isinstance(content, dict):
            self.refuse(f"is a {type(content).__name__}", "It is a JSON object")
        self.left: dict[str, Any] = dict(content)

    def refuse(self, found: str, rule: str) -> NoReturn:
        raise SafetyError(f"{self.where} {found}", rule, f"Mend zoo/{FILE}, or install the package again")

    def take(self, name: str, rule: str, good: Callable[[Any], bool], **default: Any) -> Any:
        """The value of a field that keeps a rule; with `otherwise` given the field may be absent."""
        if name not in self.left:
            if "otherwise" in default:
                return default["otherwise"]
            self.refuse(f"has no field {name!r}", f"{name!r} is {rule}")
        value = self.left.pop(name)
        if not good(value):
            self.refuse(f"has {value!r} as {name!r}", f"{name!r} is {rule}")
        return value

    def text(self, name: str, rule: str = "a text that is not empty") -> str:
        return str(self.take(name, rule, _is_text))

    def end(self, known: str) -> None:
        if self.left:
            self.refuse(f"has the unknown fields {', '.join(map(repr, self.left))}", f"Its fields are {known}")


def _entry(name: str, content: Any) -> Entry:
    fields = _Fields(f"The registry entry {name!r}", content)
    if not _NAME.fullmatch(name):
        fields.refuse("has a name of other characters", "A name has lower-case letters, digits and underscores")
    if ("download" in fields.left) == ("build" in fields.left):
        fields.refuse("has both or neither of 'download' and 'build'", "A model is either downloaded or built")
    remotes = fields.take("download", "a list of at least one file", _is_filled_list, otherwise=[])
    recipe = fields.take("build", "an object", lambda value: isinstance(value, dict), otherwise=None)
    published = fields.take("published", "a list of figures", lambda value: isinstance(value, list), otherwise=[])
    limits = fields.take(
        "limits",
        "a list of at least one sentence",
        lambda value: _is_filled_list(value) and all(map(_is_text, value)),
    )
    found = Entry(
        name=name,
        version=fields.text("version"),
        kind=fields.take("kind", f"one of {', '.join(KINDS)}", lambda value: value in KINDS),
        model=fields.take("model", "the name of a file in the model's folder", _is_inside),
        limits=tuple(limits),
        **{text: fields.text(text) for text in TEXTS},
        card=fields.take("card", "a path in zoo/, or null", lambda value: value is None or _is_inside(value)),
        download=tuple(_remote(f"File {i} of the registry entry {name!r}", r) for i, r in enumerate(remotes, 1)),
        build=None if recipe is None else _recipe(f"The recipe of the registry entry {name!r}", recipe),
        published=tuple(_figure(f"Figure {i} of the registry entry {name!r}", f) for i, f in enumerate(published, 1)),
        context_turns=fields.take("context_turns", "a number of turns", _is_count, otherwise=None),
    )
    fields.end(
        f"version, kind, model, {', '.join(TEXTS)}, limits, card, published, context_turns, and download or build"
    )
    if (found.context_turns is None) == (found.kind == "classifier"):
        fields.refuse(
            f"is a {found.kind} with context_turns {found.context_turns}",
            "A classifier has them, and nothing else does",
        )
    if found.build is not None and (found.build.judged_by is None) != (found.kind == "judge"):
        fields.refuse(
            f"is a {found.kind} judged by {found.build.judged_by!r}", "A generator that is built names its judge"
        )
    return found


def _remote(where: str, content: Any) -> Remote:
    fields = _Fields(where, content)
    found = Remote(
        url=fields.take("url", "an address that begins with http:// or https:// and ends in a file's name", _is_url),
        sha256=fields.take("sha256", "64 hexadecimal digits, or null where it is not known", _is_digest_or_none),
        size=fields.take("size", "a number of bytes, or null where it is not known", _is_count_or_none),
        unpack=fields.take("unpack", 'null, "all", "flat" or "FOLDER/"', _is_way_to_unpack),
    )
    fields.end("url, sha256, size, unpack")
    return found


def _recipe(where: str, content: Mapping[str, Any]) -> Recipe:
    fields = _Fields(where, content)
    found = Recipe(
        job=fields.text("job"),
        recipe=fields.take("recipe", "the name of a recipe, or null", lambda v: v is None or _is_text(v)),
        take=fields.take("take", "a folder of the job's run, or a judge", _is_inside),
        seed=fields.take("seed", "a whole number", lambda value: type(value) is int and value >= 0),
        threads=fields.take("threads", "a number of threads", _is_count),
        judged_by=fields.take("judged_by", "the name of an entry, or null", lambda v: v is None or _is_name(v)),
        limit=fields.take("limit", "a number of contexts", _is_count),
    )
    fields.end("job, recipe, take, seed, threads, judged_by, limit")
    return found


def _figure(where: str, content: Any) -> Published:
    fields = _Fields(where, content)
    found = Published(
        name=fields.text("name"),
        on=fields.text("on"),
        value=fields.take("value", "a number", _is_number),
        n=fields.take("n", "a number of examples", _is_count),
        source=fields.text("source"),
        low=fields.take("low", "a number, or null", lambda value: value is None or _is_number(value)),
        high=fields.take("high", "a number, or null", lambda value: value is None or _is_number(value)),
    )
    fields.end("name, on, value, n, source, low, high")
    if (found.low is None) != (found.high is None):
        fields.refuse("has one end of an interval", "An interval has two ends")
    if found.low is not None and found.high is not None and not found.low <= found.value <= found.high:
        fields.refuse(f"has {found.value} outside [{found.low}, {found.high}]", "The interval holds the value")
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_filled_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_inside(value: Any) -> bool:
    """Whether it is a relative path that does not lead out of its folder."""
    if not isinstance(value, str) or not value or "\\" in value:
        return False
    path = PurePosixPath(value)
    return not path.is_absolute() and ".." not in path.parts and str(path) == value and not Path(value).drive


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("http://", "https://")) and not value.endswith("/")


def _is_digest_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and _DIGEST.fullmatch(value) is not None)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_count_or_none(value: Any) -> bool:
    return value is None or _is_count(value)


def _is_way_to_unpack(value: Any) -> bool:
    if value in (None, "all", "flat"):
        return True
    return isinstance(value, str) and value.endswith("/") and _is_inside(value.removesuffix("/"))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
