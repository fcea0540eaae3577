r"""`-t safety:rounds --safety-manifest F`: labelled replies of adversarial rounds, folded in by a manifest.

Build it, break it, fix it (Dinan et al. 2019, arXiv:1908.06083; Xu et al. 2020, arXiv:2010.07079): people write what
the current judge gets wrong, and the next judge learns from all rounds so far. The manifest, YAML or JSON, lists them:

    rounds:
      - name: standard                   # a word; round 1
        file: standard.jsonl             # rows of `safety:file`, relative to the manifest; or standard.{split}.jsonl
        sha256: 9f86d0…                  # of the file; of each split's file where {split} stands
      - name: first break                # round 2
        file: break1.jsonl
        sha256: 60303a…
        split: train                     # the whole file is one split; or
        share: {train: 0.8, valid: 0.1, test: 0.1}   # conversations go by a hash of their first turn; the default
        weight: 2.0                      # how often its rows are shown in training; 1 by default
        collected_by: twelve volunteers  # who wrote it
        judge: parlai:judges/round1      # the judge that was to be broken

`--safety-round N` shows rounds 1 to N, and with `--safety-round-only true` round N alone: F1 by round is

    parlai eval_model -mf MODEL -dt test --safety-manifest F \
        -t safety:rounds:classifier:safety_round=1:safety_round_only=True,safety:rounds:classifier:safety_round=2:...

where each round is a task of its own in ParlAI's report. Weights count in training alone: a weight of 2.5 shows every
row twice, and half of the rows, told by a hash, once more. Views: default, `:plain`, `:positive`, `:negative`,
`:classifier`. `provenance["round"]` says number, name, who collected it, and the judge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser

from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.files import read_rows, sha256
from parlai_safety.options import add_options, option, options_from
from parlai_safety.tasks.common import Row, RowTeacher, in_views
from parlai_safety.tasks.file.agents import read_row

SPLITS = ("train", "valid", "test")
SHARE = {"train": 0.8, "valid": 0.1, "test": 0.1}
KNOWN = ("name", "file", "sha256", "split", "share", "weight", "collected_by", "judge")
ABOUT = ("collected_by", "judge")
MANY = "{split}"


@dataclass(frozen=True)
class RoundOptions:
    """Which rounds are shown."""

    safety_manifest: str | None = option(None, "YAML or JSON that lists the rounds.")
    safety_round: int | None = option(None, "Show the rounds up to this one; all of them if left out.", low=1)
    safety_round_only: bool = option(False, "Show that round alone, and not those before it.")


class Round(NamedTuple):
    """A round of a manifest.

    Attributes:
        number: from 1.
        name: a word for reports.
        files: split -> path.
        shares: split -> its share of the conversations of the one file; empty where each split has a file.
        hashes: path -> the SHA-256 that it should have.
        weight: how often a row is shown in training.
        about: who collected it, and which judge was to be broken, as far as the manifest says so.
    """

    number: int
    name: str
    files: dict[str, Path]
    shares: dict[str, float]
    hashes: dict[Path, str]
    weight: float
    about: dict[str, str]


def read_manifest(path: str | Path) -> list[Round]:
    """The rounds of a manifest, in its order.

    Raises:
        SafetyError: the file is missing or is no manifest, or a round lacks a field or has a wrong one.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SafetyError(
            f"--safety-manifest got {str(path)!r} ({' '.join(str(error).split())[:160]})",
            "It names a YAML or JSON file that lists adversarial rounds",
            "Check the path and the file; parlai_safety/tasks/rounds/agents.py shows the format",
        ) from error
    listed = content.get("rounds") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed or not all(isinstance(entry, dict) for entry in listed):
        raise SafetyError(
            f"The manifest {str(path)!r} lists no rounds",
            "It is a mapping with one key, rounds: a list of at least one round, each a mapping",
            "Write for example rounds: [{name: standard, file: standard.jsonl, sha256: ...}]",
        )
    rounds = [_round(entry, number, path) for number, entry in enumerate(listed, 1)]
    names = [each.name for each in rounds]
    for name in names:
        if names.count(name) > 1:
            raise _wrong(path, names.index(name) + 1, f"the name {name!r}, as another one has", "names differ")
    return rounds


def round_rows(found: Round, split: str) -> Iterator[Row]:
    """The rows of a round in a split, each as often as its weight says.

    Raises:
        SafetyError: the file is missing or is another one than the manifest means, or a row is wrong.
    """
    path = found.files.get(split)
    if path is None:
        return
    if not path.is_file():
        raise SafetyError(
            f"There is no file {str(path)!r}, which is round {found.number} ({found.name})",
            "The files of a manifest are looked for relative to it",
            "Put the file there, or mend the manifest",
        )
    actual = sha256(path)
    if actual != found.hashes[path]:
        raise SafetyError(
            f"The file {str(path)!r} has the SHA-256 {actual}, and the manifest says {found.hashes[path]}",
            f"Round {found.number} ({found.name}) is told from other versions by it, and results by round rest on that",
            "Put the right file back, or write the new hash into the manifest",
        )
    about = {"number": found.number, "name": found.name, **found.about}
    for number, (where, content) in enumerate(read_rows(path)):
        row = read_row(content, where)
        if found.shares and _split_of(row, found.shares) != split:
            continue
        row.fields["provenance"] = {**row.fields.get("provenance", {}), "round": about}
        weight = found.weight if split == "train" else 1.0
        copies = int(weight) + (_part(f"copy {number} {row.reply}") < weight % 1)
        for _ in range(copies):
            yield row


class DefaultTeacher(RowTeacher):
    """Labelled replies of adversarial rounds, by a manifest."""

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        self.rounds = _chosen(options_from(opt, RoundOptions))
        super().__init__(opt, shared)

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the flags of `RoundOptions`, once for all tasks of a command."""
        super().add_cmdline_args(parser, partial_opt)
        if not any(action.dest == "safety_manifest" for action in parser._actions):
            add_options(parser, RoundOptions, "Adversarial rounds")
        return parser

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of the chosen rounds in this split, round by round."""
        for each in self.rounds:
            yield from round_rows(each, split)


def _chosen(options: RoundOptions) -> list[Round]:
    if not options.safety_manifest:
        raise SafetyError(
            "-t safety:rounds came without --safety-manifest",
            "The task reads its rounds from a manifest that you name",
            "Add --safety-manifest rounds.yaml",
        )
    rounds = read_manifest(options.safety_manifest)
    last = options.safety_round
    if options.safety_round_only and last is None:
        raise SafetyError(
            "--safety-round-only came without --safety-round",
            "It shows one round alone, and which one is not said",
            "Add --safety-round N",
        )
    if last is not None and last > len(rounds):
        raise SafetyError(
            f"--safety-round got {last}",
            f"The manifest {options.safety_manifest!r} lists {len(rounds)} rounds",
            f"Give a number from 1 to {len(rounds)}, or leave it out for all of them",
        )
    return rounds[:last] if not options.safety_round_only else [rounds[(last or 1) - 1]]


def _round(entry: dict[str, Any], number: int, path: Path) -> Round:
    for key in entry:
        if key not in KNOWN:
            near = did_you_mean(str(key), KNOWN, f"It may hold {', '.join(KNOWN)}")
            raise SafetyError(f"Round {number} of {str(path)!r} has the field {key!r}", "No field has that name", near)
    for key in ("name", "file", *(about for about in ABOUT if about in entry)):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise _wrong(path, number, f"{key} {entry.get(key)!r}", f"{key!r} is a text")
    split, weight, many = entry.get("split"), entry.get("weight", 1.0), MANY in entry["file"]
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 100:
        raise _wrong(path, number, f"weight {weight!r}", "'weight' is a number from 0 to 100")
    if ("split" in entry) + ("share" in entry) + many > 1:
        raise _wrong(path, number, "more than one rule of its splits", "one of split, share and {split} says them")
    if "split" in entry and split not in SPLITS:
        raise _wrong(path, number, f"split {split!r}", f"'split' is one of {', '.join(SPLITS)}")
    shares = {split: 1.0} if split else _shares(entry.get("share", SHARE), number, path)
    names = {name: entry["file"].replace(MANY, name) for name in (SPLITS if many else shares)}
    files = {name: path.parent / file for name, file in names.items()}
    hashes = _hashes(entry.get("sha256"), files, many, number, path)
    if many:
        files = {name: file for name, file in files.items() if file in hashes}
    about = {key: entry[key] for key in ABOUT if key in entry}
    return Round(number, entry["name"].strip(), files, {} if many else shares, hashes, float(weight), about)


def _shares(found: Any, number: int, path: Path) -> dict[str, float]:
    right = isinstance(found, dict) and found and set(found) <= set(SPLITS)
    if not right or not all(isinstance(v, (int, float)) and not isinstance(v, bool) and v >= 0 for v in found.values()):
        raise _wrong(
            path, number, f"share {found!r}", "'share' gives splits their shares, as in {train: 0.9, test: 0.1}"
        )
    if abs(sum(found.values()) - 1) > 1e-6:
        raise _wrong(path, number, f"shares that sum to {sum(found.values()):g}", "the shares sum to 1")
    return {name: float(found[name]) for name in SPLITS if found.get(name)}


def _hashes(found: Any, files: dict[str, Path], many: bool, number: int, path: Path) -> dict[Path, str]:
    """The SHA-256 of each file; of a file a split, those of the splits that there are."""
    by_split = found if many and isinstance(found, dict) else {} if many else dict.fromkeys(files, found)
    right = all(name in SPLITS and isinstance(value, str) and len(value) == 64 for name, value in by_split.items())
    if not by_split or not right:
        there = [file for file in dict.fromkeys(files.values()) if file.is_file()]
        hint = "; ".join(f"{file.name} has {sha256(file)}" for file in there) or "sha256sum FILE prints it"
        rule = "'sha256' is a mapping of splits to 64 digits" if many else "'sha256' is 64 hexadecimal digits"
        raise _wrong(path, number, f"sha256 {found!r}", f"{rule} ({hint})")
    return {files[name]: value.lower() for name, value in by_split.items()}


def _split_of(row: Row, shares: dict[str, float]) -> str:
    """The split of a row's conversation, told by a hash of its first turn."""
    place = _part((row.context[0] if row.context else row.reply).strip().lower())
    for name, share in shares.items():
        place -= share
        if place < 0:
            return name
    return next(reversed(shares))  # what rounding left over


def _part(text: str) -> float:
    """A number in [0, 1) that hangs on the text alone."""
    return int(hashlib.sha256(f"rounds {text}".encode()).hexdigest()[:8], 16) / 16**8


def _wrong(path: Path, number: int, found: str, rule: str) -> SafetyError:
    return SafetyError(
        f"Round {number} of {str(path)!r} has {found}",
        f"In a manifest {rule}",
        "Mend it; parlai_safety/tasks/rounds/agents.py shows the format",
    )


PlainTeacher, PositiveTeacher, NegativeTeacher, ClassifierTeacher = in_views(DefaultTeacher)
