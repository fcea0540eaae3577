"""Making the shipped corpus again: the generators, the splits without leak, the files and their manifest.

    python -m parlai_safety.corpus.build --write    writes data/*.jsonl and manifest.json
    python -m parlai_safety.corpus.build --check    builds in memory and compares with the manifest and the files

Splits are drawn by conversation. Conversations that are nearly equal (Jaccard index of their token sets at least 0.8)
are joined first and never parted. About 15 % of the adversarial families are kept whole for the test split. What the
splits do not promise: single sentences of the ordinary half recur across splits, because the material is shared. The
contradiction set draws its splits itself, since they decide which values and patterns it may use.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from parlai_safety.corpus import adversarial, contradiction, ordinary
from parlai_safety.corpus.load import DATA_FOLDER, SPLITS
from parlai_safety.corpus.near import groups, near_pairs, tokens
from parlai_safety.corpus.records import STYLES, AdversarialExchange, OrdinaryDialogue
from parlai_safety.corpus.statistics import Corpus, measure
from parlai_safety.errors import SafetyError
from parlai_safety.files import sha256, write_json, write_text

SEED = 20260801
VERSION = "1.0"
MANIFEST_FILE = DATA_FOLDER.parent / "manifest.json"
ORDINARY_SHARES: Mapping[str, float] = {"train": 0.80, "valid": 0.08, "test": 0.12}
ADVERSARIAL_SHARES: Mapping[str, float] = {"train": 0.70, "valid": 0.10, "test": 0.20}
UNSEEN_FAMILY_SHARE = 0.15
NEAR_THRESHOLD = 0.8
# Below this many tokens one shared phrase makes two contexts "near", so short ones must only not be equal.
TOKENS_COMPARED_AT_LEAST = 8
# A joined group above this share of its half could not be placed without bending the split sizes.
LARGEST_GROUP_SHARE = 0.02


class Item(NamedTuple):
    """What the splitting needs to know of a conversation.

    `text` is compared for near-duplicates; `size` is its number of exchanges; the shares hold within each `stratum`;
    `pinned` names the split it must be in, or is None.
    """

    text: str
    size: int
    stratum: str
    pinned: str | None


def build(seed: int) -> Corpus:
    """Build and split both halves and the contradiction set.

    Raises:
        SafetyError: near-duplicates join into a group too large to be split.
    """
    return Corpus(
        split_ordinary(ordinary.build(seed), seed),
        split_adversarial(adversarial.build(seed), seed),
        contradiction.build(seed),
    )


def split_ordinary(dialogues: Sequence[OrdinaryDialogue], seed: int) -> dict[str, list[OrdinaryDialogue]]:
    """Share the dialogues out by topic: 80, 8 and 12 % of the exchanges for training, validation and test."""
    items = [Item(" ".join(row["turns"]), len(row["turns"]) // 2, row["topic"], None) for row in dialogues]
    names = assign(items, ORDINARY_SHARES, random.Random(f"split/ordinary/{seed}"), shortest=0)
    return {split: [row for row, name in zip(dialogues, names, strict=True) if name == split] for split in SPLITS}


def split_adversarial(exchanges: Sequence[AdversarialExchange], seed: int) -> dict[str, list[AdversarialExchange]]:
    """Share the exchanges out: 70, 10 and 20 %, with whole families kept for the test split."""
    rng = random.Random(f"split/adversarial/{seed}")
    unseen = unseen_families(exchanges, rng)
    # The kept families fill most of the test share already, so the rest of it is drawn from the seen ones.
    kept = sum(row["family"] in unseen for row in exchanges) / len(exchanges)
    shares = {split: share / (1 - kept) for split, share in ADVERSARIAL_SHARES.items()}
    shares["test"] = 1 - shares["train"] - shares["valid"]
    items = [
        Item(" ".join(row["context"]), 1, row["style"], "test" if row["family"] in unseen else None)
        for row in exchanges
    ]
    names = assign(items, shares, rng, shortest=TOKENS_COMPARED_AT_LEAST)
    splits: dict[str, list[AdversarialExchange]] = {split: [] for split in SPLITS}
    for row, name in zip(exchanges, names, strict=True):
        splits[name].append({**row, "unseen_family": row["family"] in unseen})
    return splits


def unseen_families(exchanges: Sequence[AdversarialExchange], rng: random.Random) -> set[str]:
    """Draw about 15 % of the families of every style, at least one of each."""
    unseen: set[str] = set()
    for style in STYLES:
        families = sorted({row["family"] for row in exchanges if row["style"] == style})
        unseen |= set(rng.sample(families, max(1, round(UNSEEN_FAMILY_SHARE * len(families)))))
    return unseen


def assign(items: Sequence[Item], shares: Mapping[str, float], rng: random.Random, *, shortest: int) -> list[str]:
    """Give every item a split, near-duplicates the same one.

    Args:
        items: the conversations.
        shares: the wanted share of each split in [0, 1], summing to 1.
        rng: the source of the order in which groups are placed.
        shortest: texts with fewer tokens are joined only when they are equal.

    Returns:
        The name of the split of each item, in the order of the items.

    Raises:
        SafetyError: a group of near-duplicates holds more than 2 % of the items.
    """
    words = [tokens(item.text) for item in items]
    long = [index for index in range(len(items)) if len(words[index]) >= shortest]
    pairs = [(long[i], long[j]) for i, j in near_pairs([items[index].text for index in long], NEAR_THRESHOLD)]
    first_with: dict[str, int] = {}
    for index, item in enumerate(items):
        pairs.append((first_with.setdefault(" ".join(tokens(item.text)), index), index))
    joined = groups(len(items), pairs)
    largest = max(joined, key=len)
    if len(largest) > max(1.0, LARGEST_GROUP_SHARE * len(items)):
        raise SafetyError(
            f"{len(largest)} of {len(items)} conversations are near-duplicates, like {items[largest[0]].text!r}",
            "They must all go into one split, and the splits would lose their sizes",
            "Vary the generator's text more, so that fewer words are shared",
        )
    names = [""] * len(items)
    placed: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(shares, 0))
    rng.shuffle(joined)
    for group in joined:
        pinned = next((items[index].pinned for index in group if items[index].pinned), None)
        have = placed[items[group[0]].stratum]
        # The lack is measured before the group is added: otherwise long conversations would favour the training split.
        lacks = {split: share * sum(have.values()) - have[split] for split, share in shares.items()}
        name = pinned or max(lacks, key=lambda split: lacks[split])
        if pinned is None:
            have[name] += sum(items[index].size for index in group)
        for index in group:
            names[index] = name
    return names


def serialised(corpus: Corpus) -> dict[str, str]:
    """The text of every data file by name: one JSON object a line."""
    parts: dict[str, Mapping[str, Sequence[Any]]] = corpus._asdict()
    return {
        f"{part}.{split}.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for part, splits in parts.items()
        for split, rows in splits.items()
    }


def hashes(corpus: Corpus) -> dict[str, str]:
    """The SHA-256 of every data file by name, without writing it."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in serialised(corpus).items()}


def write(corpus: Corpus, seed: int, folder: Path = DATA_FOLDER, manifest_file: Path = MANIFEST_FILE) -> None:
    """Write the data files and, last, the manifest that describes them."""
    for name, text in serialised(corpus).items():
        write_text(folder / name, text)
    statistics = measure(corpus)
    manifest = {
        "version": VERSION,
        "seed": seed,
        "licence": "MIT",
        "rows": {name: text.count("\n") for name, text in serialised(corpus).items()},
        "sha256": hashes(corpus),
        "statistics": dataclasses.asdict(statistics),
    }
    write_json(manifest_file, manifest)


def check(folder: Path = DATA_FOLDER, manifest_file: Path = MANIFEST_FILE) -> None:
    """Rebuild in memory and compare with the manifest and with the files on disk.

    Raises:
        SafetyError: a file is missing, or its hash differs from the manifest's or from the rebuilt one.
    """
    if not manifest_file.is_file():
        raise SafetyError(
            f"There is no manifest {str(manifest_file)!r}",
            "The hashes to compare with are kept in it",
            "Write the corpus first: python -m parlai_safety.corpus.build --write",
        )
    manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
    rebuilt = hashes(build(manifest["seed"]))
    for name in sorted(rebuilt.keys() | manifest["sha256"].keys()):
        path = folder / name
        on_disk = sha256(path) if path.is_file() else None
        found = {"manifest": manifest["sha256"].get(name), "file": on_disk, "rebuilt": rebuilt.get(name)}
        if len(set(found.values())) > 1:
            named = ", ".join(f"{where} {(digest or 'missing')[:12]}" for where, digest in found.items())
            raise SafetyError(
                f"The data file {name!r} has different hashes ({named})",
                "The text, the generator or the file was changed after the corpus was written",
                "If that was meant, write it again: python -m parlai_safety.corpus.build --write",
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: returns 0, or 1 after an error of ours."""
    parser = argparse.ArgumentParser(prog="python -m parlai_safety.corpus.build", description="Build the corpus.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write the data files and the manifest")
    action.add_argument("--check", action="store_true", help="rebuild in memory and compare with what is there")
    parser.add_argument("--seed", type=int, default=SEED, help="seed for --write, default %(default)s")
    options = parser.parse_args(arguments)
    try:
        if options.write:
            write(build(options.seed), options.seed)
        else:
            check()
    except SafetyError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
