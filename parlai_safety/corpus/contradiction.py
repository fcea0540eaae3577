"""The contradiction set of the corpus that ships: a bot says something about itself and must keep to it.

Where it comes from: our own hand-written patterns and values (`text/contradiction.yaml`), combined by a seeded
generator. The task is that of DECODE (Nie et al. 2021, arXiv:2012.13391), which CRINGE learns from
(arXiv:2211.05826): the last turn of a dialogue agrees with what its speaker said before, or contradicts it. Nothing is
copied from that data set.

Exchanges come in twins. The bot states one thing in the first and another in the second; both have the same two
replies, and the reply that agrees in the one contradicts in the other. So every reply and every context carries both
labels equally often, and no judge that adds a score of the reply to a score of the context beats chance: a
word list over the reply, or over the reply and its context together, has an AUC of 0.500 on the test split
(`statistics` prints both). In a share of the contexts the human names the other value, so that seeing the word is not
enough.

Splits: a value of a family is in one split only; one family of each kind and the last two patterns of every list are
kept for the test split; no context is nearly equal to one of another split. Left out: contradictions across more than
nine turns, common-sense ones beyond the few `also` forms, and any noise of real talk.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from parlai_safety.corpus.load import SPLITS
from parlai_safety.corpus.near import jaccard, tokens
from parlai_safety.corpus.records import KINDS, ContradictionExchange, Reply
from parlai_safety.errors import SafetyError

FILE = Path(__file__).parent / "text" / "contradiction.yaml"

# Pairs of twins of a family that is in every split, and of one that is in the test split alone.
TWINS: Mapping[str, int] = {"train": 11, "valid": 2, "test": 3}
UNSEEN_TWINS = 10
# Values of a family that is in every split; the training split gets the rest.
VALUES: Mapping[str, int] = {"test": 3, "valid": 3}
HELD_BACK = 2
# How often a context has none, one, two or three further pairs of turns beside the fact and the question.
FILLER_SHARES = (0.2, 0.35, 0.3, 0.15)
# How often one of these pairs is the human's with the other value, and another a further fact of the bot's.
SHARE_WITH_OTHER = 0.5
SHARE_WITH_SECOND_FACT = 0.4
MAX_JACCARD = 0.8
MIN_TOKENS_COMPARED = 8

_ATTEMPTS = 400
_SENTENCE_START = re.compile(r"(^|[.?!] +)([a-z])")

_Pair = tuple[str, str]


class Side(NamedTuple):
    """One of the two things that may be true of the bot, with its texts.

    Attributes:
        say: ways in which the bot states it.
        other: the human's facts of the same sort with the other value; may be empty.
        ask: the later questions.
        reply: replies that rest on it.
    """

    say: list[str]
    other: list[str]
    ask: list[str]
    reply: list[str]


@functools.cache
def material() -> dict[str, Any]:
    """The text file as it stands: `between`, `nods`, `apart` and `families`."""
    content: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return content


def unseen_families(seed: int) -> set[str]:
    """One family of each kind, kept for the test split."""
    rng = random.Random(f"{seed}/contradiction/unseen")
    families = material()["families"]
    return {rng.choice([name for name, family in families.items() if family["kind"] == kind]) for kind in KINDS}


def build(seed: int) -> dict[str, list[ContradictionExchange]]:
    """Generate the exchanges of every split; the same seed gives the same ones on any platform.

    Raises:
        SafetyError: a family has too little text for so many contexts that differ across splits.
    """
    unseen = unseen_families(seed)
    families = material()["families"]
    kept: dict[str, list[set[str]]] = {split: [] for split in SPLITS}
    exchanges: dict[str, list[ContradictionExchange]] = {split: [] for split in SPLITS}
    number = 0
    for name in families:
        rng = random.Random(f"{seed}/contradiction/{name}")
        values = _values(name, seed)
        for split in SPLITS:
            others = [one for one in families if one not in unseen or split == "test"]
            for index in range(_twins(name in unseen, split)):
                # A negation is of one value, and few are drawn: they take turns, so that all are used.
                at = index % len(values[split])
                turned = [*values[split][at:], *values[split][:at]]
                pair = _distinct_twins(name, split, turned, others, seed, kept, rng)
                for offset, exchange in enumerate(pair):
                    kept[split].append(_words(exchange["context"]))
                    exchange["id"], exchange["twin"] = f"c-{number + offset:05d}", f"c-{number + 1 - offset:05d}"
                    exchange["unseen_family"] = name in unseen
                    exchanges[split].append(exchange)
                number += 2
    return exchanges


def _twins(unseen: bool, split: str) -> int:
    if not unseen:
        return TWINS[split]
    return UNSEEN_TWINS if split == "test" else 0


@functools.cache
def _values(name: str, seed: int) -> dict[str, list[Any]]:
    """The values of a family in each split; none is in two."""
    values = material()["families"][name]["values"]
    order = random.Random(f"{seed}/contradiction/{name}/values").sample(values, len(values))
    if name in unseen_families(seed):
        return {"train": [], "valid": [], "test": order}
    tested, used = VALUES["test"], VALUES["test"] + VALUES["valid"]
    return {"test": order[:tested], "valid": order[tested:used], "train": order[used:]}


def _distinct_twins(
    name: str,
    split: str,
    values: Sequence[Any],
    others: Sequence[str],
    seed: int,
    kept: Mapping[str, list[set[str]]],
    rng: random.Random,
) -> list[ContradictionExchange]:
    """Twins whose contexts are new, and not near to one of another split."""
    for _ in range(_ATTEMPTS):
        pair = _twin_exchanges(name, split, values, others, seed, rng)
        words = [_words(exchange["context"]) for exchange in pair]
        elsewhere = [one for other in SPLITS if other != split for one in kept[other]]
        fresh = not any(one in kept[split] for one in words)
        if fresh and not any(_near(one, other) for one in words for other in elsewhere):
            return pair
    raise SafetyError(
        f"The family {name!r} gave too few contexts for the split {split!r}",
        "Each context must be new, and must differ from those of other splits in more than one word",
        "Write more patterns or values for it in text/contradiction.yaml",
    )


def _twin_exchanges(
    name: str, split: str, values: Sequence[Any], others: Sequence[str], seed: int, rng: random.Random
) -> list[ContradictionExchange]:
    """Two exchanges that differ in what the bot states, with the same two replies."""
    family = material()["families"][name]
    sides = _sides(family, split, values, rng)
    replies = [rng.choice(side.reply) for side in sides]
    question = rng.choice(sides[0].ask)
    fillers = _fillers(name, split, others, seed, rng)
    at = rng.randint(0, len(fillers))
    # The human may name what the twin's bot says of itself: the same pattern in both, with the other value.
    with_other = bool(sides[0].other) and rng.random() < SHARE_WITH_OTHER
    pattern, nod, other_first = rng.randrange(9), rng.choice(material()["nods"]), rng.random() < 0.5
    pair: list[ContradictionExchange] = []
    for own, side in enumerate(sides):
        fact = (rng.choice(_of_split(family["open"], split)), rng.choice(side.say))
        middle = [fact]
        if with_other:
            middle.insert(0 if other_first else 1, (side.other[pattern % len(side.other)], nod))
        pairs = [*fillers[:at], *middle, *fillers[at:]]
        labelled: list[Reply] = [
            {"text": text, "label": "safe" if index == own else "unsafe"} for index, text in enumerate(replies)
        ]
        rng.shuffle(labelled)
        pair.append(
            {
                "id": "",
                "twin": "",
                "kind": family["kind"],
                "family": name,
                "context": [*(turn for both in pairs for turn in both), question],
                "evidence": 2 * pairs.index(fact) + 1,
                "replies": labelled,
                "unseen_family": False,
            }
        )
    return pair


def _sides(family: Mapping[str, Any], split: str, values: Sequence[Any], rng: random.Random) -> tuple[Side, Side]:
    """The two things of which the bot states one, with the family's patterns filled for either.

    A negation takes the first of the values, and other families draw two of them.
    """
    if "sides" in family:
        forms = {"x": values[0]}
        first, second = (_side({**family, **side}, split, forms) for side in family["sides"])
        return first, second
    one, two = (value if isinstance(value, dict) else {"v": value} for value in rng.sample(list(values), 2))
    return _side(family, split, {**one, "w": two["v"]}), _side(family, split, {**two, "w": one["v"]})


def _side(patterns: Mapping[str, Any], split: str, forms: Mapping[str, str]) -> Side:
    def filled(name: str) -> list[str]:
        listed = patterns.get(name, [])
        # The human's own facts are few and decide nothing, so every split may use them all.
        chosen = listed if name == "other" else _of_split(listed, split)
        return [_SENTENCE_START.sub(lambda m: m.group(1) + m.group(2).upper(), p.format(**forms)) for p in chosen]

    return Side(*(filled(name) for name in Side._fields))


def _of_split(patterns: Sequence[str], split: str) -> Sequence[str]:
    """The patterns that a split may use: the test split all, the others not the last ones."""
    return patterns if split == "test" else patterns[:-HELD_BACK]


def _fillers(name: str, split: str, others: Sequence[str], seed: int, rng: random.Random) -> list[_Pair]:
    """Pairs of turns that say nothing of the fact: small talk, and at most one further fact of the bot's."""
    count = rng.choices(range(len(FILLER_SHARES)), FILLER_SHARES)[0]
    pairs: list[_Pair] = [(human, bot) for human, bot in rng.sample(material()["between"], count)]
    if pairs and rng.random() < SHARE_WITH_SECOND_FACT:
        apart = {name}.union(*(row for row in material()["apart"] if name in row))
        second = rng.choice([one for one in others if one not in apart])
        family = material()["families"][second]
        values = _values(second, seed)[split]
        side = rng.choice(_sides(family, split, rng.sample(values, len(values)), rng))
        pairs[rng.randrange(count)] = (rng.choice(_of_split(family["open"], split)), rng.choice(side.say))
    return pairs


def _words(context: Sequence[str]) -> set[str]:
    return set(tokens(" ".join(context)))


def _near(first: set[str], second: set[str]) -> bool:
    return min(len(first), len(second)) >= MIN_TOKENS_COMPARED and jaccard(first, second) >= MAX_JACCARD
