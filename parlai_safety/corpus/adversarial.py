"""The adversarial half of the corpus that ships: a person tries to make a bot say something unsafe.

Where it comes from: our own hand-written frames, filled from slot lists by a seeded generator. It imitates the kinds
of turn collected for Bot-Adversarial Dialogue (Xu et al. 2021, "Bot-Adversarial Dialogue for Safe Conversational
Agents", NAACL), in mild and clearly artificial form: invented groups, nameless roles, cartoon insults. Nothing is
copied from that data set.

Each context carries safe and unsafe replies. About a third are short answers that agree or disagree: the last human
turn decides which of the two is unsafe. Half of the contexts hold a pair of longer replies of nearly the same words.
Single words of the reply therefore do not give the label away.

Left out: strong or realistic abuse, real groups, and any claim that these turns are as varied as collected ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from parlai_safety.corpus import (
    text_adversarial_bait,
    text_adversarial_hateful,
    text_adversarial_insult,
    text_adversarial_probing,
    text_adversarial_provocation,
)
from parlai_safety.corpus import text_adversarial_replies as shared
from parlai_safety.corpus import text_adversarial_slots as slots
from parlai_safety.corpus import text_adversarial_turns as turns
from parlai_safety.corpus.near import jaccard, tokens
from parlai_safety.corpus.records import AdversarialExchange, Label, Reply, Style
from parlai_safety.corpus.text_adversarial_frame import Closing, Domain, Frame, Stance
from parlai_safety.errors import SafetyError

FRAMES: dict[Style, tuple[Frame, ...]] = {
    "insult": text_adversarial_insult.FRAMES,
    "hateful_generalisation": text_adversarial_hateful.FRAMES,
    "bait_and_agree": text_adversarial_bait.FRAMES,
    "provocation": text_adversarial_provocation.FRAMES,
    "probing": text_adversarial_probing.FRAMES,
}

EXCHANGES_PER_FAMILY = 42
# Share of contexts with 1, 3, 5 and 7 turns.
LENGTH_SHARES: dict[int, float] = {1: 0.45, 3: 0.30, 5: 0.15, 7: 0.10}
# Two contexts of one family must stay below this Jaccard similarity of their token sets...
MAX_JACCARD = 0.8
# ...unless either of them has fewer tokens than this, where one shared word weighs too much.
MIN_TOKENS_COMPARED = 8

MAX_REPLY_WORDS = 20
MIN_REPLIES_PER_LABEL = 3
# How often a closing turn is led in by a sentence that gives its mood away.
SHARE_WITH_MOOD = 0.3
# How often the replies to a context contain a pair of nearly the same words.
SHARE_WITH_PAIR = 0.5
# How often the first short answer is one of the few that come up most.
SHARE_WITH_CORE = 0.5
# How often a short answer is followed by a sentence, and any reply preceded by a few words.
SHARE_WITH_TAIL = 0.4
SHARE_WITH_BEGINNING = 0.15

_ATTEMPTS_PER_CONTEXT = 400
_SLOT = re.compile(r"\{(\w+)\}")
_SENTENCE_START = re.compile(r"(^|[.?!] +)([a-z])")
# "a useless" and "a unit" keep their article: the u is spoken as in "you".
_ARTICLE_BEFORE_VOWEL = re.compile(r"\b([Aa]) (?=[aeio]|honest|u(?!se|ni))")
# Slots that a reply may fill by itself. All others must already occur in the context.
_FREE_SLOTS = frozenset({"P", "E", "T", "K", "K2", "TOPIC", "FU"})

_VALUES: dict[str, tuple[str, ...]] = {
    "A": slots.FAULT_ADJECTIVES,
    "K": slots.GOOD_ADJECTIVES,
    "Y": slots.SIMILES,
    "P": slots.PLACES,
    "E": slots.EVENTS,
    "T": slots.THINGS,
    "M": slots.MISHAPS,
    "Q": slots.SKILLS,
    "J": slots.TRAITS,
    "C": slots.CLOTHES,
    "I": slots.INCIDENTS,
    "N": slots.BOT_NAMES,
    "B": slots.BOT_TASKS,
    "W": slots.BAD_OBJECTS,
    "TOPIC": slots.TOPICS,
    "FU": tuple(one.removeprefix("a ") for _, one in slots.FAULT_NOUNS),
}
# What follows from whom the talk is about; a capital first letter is added where the slot's name has one.
_SEVERAL = {
    "they": "they",
    "them": "them",
    "their": "their",
    "are": "are",
    "were": "were",
    "do": "do",
    "have": "have",
    "deserve": "deserve",
    "need": "need",
    "s": "",
}
_ONE = {"are": "is", "were": "was", "do": "does", "have": "has", "deserve": "deserves", "need": "needs", "s": "s"}
_HE = {"they": "he", "them": "him", "their": "his", "he": "he", "him": "him", "his": "his"}
_SHE = {"they": "she", "them": "her", "their": "her", "he": "she", "him": "her", "his": "her"}
_YOU = {"they": "you", "them": "you", "their": "your"}

# How often each stance is drawn, relative to the others that the frame has.
_STANCE_WEIGHTS: dict[Stance, int] = {"hostile": 40, "kind": 40, "harmless": 30, "open": 20}
# What a context with so many pairs of earlier turns is made of: small talk, a first mention, a hostile human turn that
# the bot resists, or one to which it gives in.
_EARLIER: dict[int, tuple[tuple[str, ...], ...]] = {
    0: ((),),
    1: (("small",), ("first",), ("resist",), ("resist",), ("yield",)),
    2: (
        ("small", "first"),
        ("small", "resist"),
        ("small", "yield"),
        ("first", "resist"),
        ("first", "yield"),
        ("resist", "resist"),
        ("resist", "yield"),
    ),
    3: (
        ("small", "small", "first"),
        ("small", "first", "resist"),
        ("small", "first", "yield"),
        ("small", "resist", "resist"),
        ("first", "resist", "resist"),
        ("first", "resist", "yield"),
        ("resist", "resist", "yield"),
    ),
}


class _Context(NamedTuple):
    """A filled context and what its slots were filled with."""

    turns: list[str]
    closing: Closing
    bindings: dict[str, str]


def build(seed: int) -> list[AdversarialExchange]:
    """Generate the adversarial exchanges.

    Args:
        seed: any integer; the same seed gives the same list, whatever the platform's hash seed.

    Returns:
        `EXCHANGES_PER_FAMILY` exchanges for each frame, in the order of the frames. All contexts are distinct.

    Raises:
        SafetyError: a frame has too little text for that many distinct contexts, or for three replies of each label.
    """
    exchanges: list[AdversarialExchange] = []
    seen: set[tuple[str, ...]] = set()
    for style, frames in FRAMES.items():
        for frame in frames:
            # One generator a frame: adding text to a frame leaves all other frames as they were.
            rng = random.Random(f"{seed}/{frame.name}")
            for context in _contexts(frame, rng, seen):
                exchanges.append(
                    {
                        "id": f"a-{len(exchanges):05d}",
                        "style": style,
                        "family": frame.name,
                        "context": context.turns,
                        "replies": _replies(frame, context, rng),
                    }
                )
    return exchanges


def _contexts(frame: Frame, rng: random.Random, seen: set[tuple[str, ...]]) -> Iterator[_Context]:
    """Distinct contexts of one frame that are not near-duplicates of each other."""
    lengths = _lengths(rng)
    kept: list[set[str]] = []
    for length in lengths:
        for _ in range(_ATTEMPTS_PER_CONTEXT):
            context = _fill_context(frame, length, rng)
            words = set(tokens(" ".join(context.turns)))
            if tuple(context.turns) not in seen and not any(_near(words, other) for other in kept):
                break
        else:
            raise SafetyError(
                f"The frame {frame.name!r} gave only {len(kept)} distinct contexts",
                f"Each family needs {EXCHANGES_PER_FAMILY} that differ in more than one word",
                "Write more closing turns for it, or give them more slots",
            )
        seen.add(tuple(context.turns))
        kept.append(words)
        yield context


def _near(first: set[str], second: set[str]) -> bool:
    return min(len(first), len(second)) >= MIN_TOKENS_COMPARED and jaccard(first, second) >= MAX_JACCARD


def _lengths(rng: random.Random) -> list[int]:
    """The number of turns of each context of a family, in random order."""
    longer = [n for n, share in LENGTH_SHARES.items() if n > 1 for _ in range(round(share * EXCHANGES_PER_FAMILY))]
    lengths = [1] * (EXCHANGES_PER_FAMILY - len(longer)) + longer
    rng.shuffle(lengths)
    return lengths


def _fill_context(frame: Frame, length: int, rng: random.Random) -> _Context:
    bindings = _subject(frame.domain, rng)
    closing = _pick_closing(frame, rng)
    last = _fill(closing.text, bindings, frame.domain, rng)
    lead = _lead(closing, frame.domain, length, rng)
    if lead:
        last = f"{_fill(lead, bindings, frame.domain, rng)} {last}"
    earlier = [_fill(turn, bindings, frame.domain, rng) for turn in _earlier_turns(frame.domain, length // 2, rng)]
    return _Context([*earlier, last], closing, bindings)


def _lead(closing: Closing, domain: Domain, length: int, rng: random.Random) -> str:
    """A sentence before the last turn, or nothing: some give the mood away and some do not."""
    if rng.random() < SHARE_WITH_MOOD and closing.stance in ("hostile", "kind"):
        return rng.choice(turns.LEADS_HOSTILE if closing.stance == "hostile" else turns.LEADS_KIND)
    # The longer contexts have earlier turns to vary them.
    return rng.choice(turns.LEADS[domain]) if rng.random() < (0.45 if length == 1 else 0.15) else ""


def _pick_closing(frame: Frame, rng: random.Random) -> Closing:
    """Draw the stance first, so that hostile and kind closings balance whatever the frame has more of."""
    by_stance: dict[Stance, list[Closing]] = {}
    for closing in frame.closings:
        by_stance.setdefault(closing.stance, []).append(closing)
    stances = sorted(by_stance)
    return rng.choice(by_stance[rng.choices(stances, [_STANCE_WEIGHTS[stance] for stance in stances])[0]])


def _earlier_turns(domain: Domain, pairs: int, rng: random.Random) -> list[str]:
    """`pairs` pairs of a human and a bot turn that lead up to the last turn, calm before hostile."""
    said: list[str] = []
    for step in rng.choice(_EARLIER[pairs]):
        human, bot = _turn_pair(step, domain, rng)
        while human in said or bot in said:
            human, bot = _turn_pair(step, domain, rng)
        said += [human, bot]
    return said


def _turn_pair(step: str, domain: Domain, rng: random.Random) -> tuple[str, str]:
    if step == "small":
        return rng.choice(turns.SMALL_TALK)
    if step == "first":
        return rng.choice(turns.FIRST_MENTIONS[domain])
    answers = turns.BOT_RESISTS if step == "resist" else turns.BOT_GIVES_IN
    return rng.choice(turns.HOSTILE_HUMAN[domain]), rng.choice(answers[domain])


def _subject(domain: Domain, rng: random.Random) -> dict[str, str]:
    """The bindings that follow from whom the talk is about: the name and the pronouns."""
    if domain == "group":
        group, other = rng.sample(slots.GROUPS, 2)
        names, words = {"X": group, "G2": other}, _SEVERAL
    elif domain == "person":
        names, words = {"X": rng.choice(slots.ROLES)}, {**_ONE, **rng.choice([_HE, _SHE])}
    else:
        names, words = {"X": "you"}, {**_SEVERAL, **_YOU}
    return {**words, **{word.capitalize(): value.capitalize() for word, value in words.items()}, **names}


def _fill(template: str, bindings: dict[str, str], domain: Domain, rng: random.Random) -> str:
    """Replace the slots of a template; what is drawn is added to `bindings`."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in bindings:
            bindings[name] = _draw(name, bindings, domain, rng)
        return bindings[name]

    text = _SLOT.sub(value, template)
    text = _ARTICLE_BEFORE_VOWEL.sub(r"\1n ", text)
    return _SENTENCE_START.sub(lambda m: m.group(1) + m.group(2).upper(), text)


def _draw(name: str, bindings: dict[str, str], domain: Domain, rng: random.Random) -> str:
    """A value for a slot that has none yet."""
    base = name.rstrip("2")
    if base in ("DX", "DT", "GX", "GT"):
        # A deed done to the group or person, mean (D) or good (G), that names them (X) or says "them" (T).
        deed = rng.choice(slots.MEAN_DEEDS if base[0] == "D" else slots.GOOD_DEEDS)
        deed = deed.replace("{O}", "{X}" if base[1] == "X" else "{them}")
        return _lower_first(_fill(deed, bindings, domain, rng))
    if base == "F":
        several, one = rng.choice(slots.FAULT_NOUNS)
        return several if domain == "group" else one
    if base == "V":
        several, one = rng.choice(slots.FAULT_HABITS)
        return one if domain == "person" else several
    taken = {value for slot, value in bindings.items() if slot.rstrip("2") == base}
    return rng.choice([value for value in _VALUES[base] if value not in taken])


def _lower_first(text: str) -> str:
    return text if text.startswith(("I ", "I'")) else text[0].lower() + text[1:]


def _replies(frame: Frame, context: _Context, rng: random.Random) -> list[Reply]:
    """Three to five safe and as many unsafe replies, none of them under both labels."""
    count = rng.choices([3, 4, 5], [40, 40, 20])[0]
    pair = _pair(frame.domain, context, rng) if rng.random() < SHARE_WITH_PAIR else None
    chosen: dict[str, Label] = {}
    labels: tuple[tuple[Label, tuple[str, ...]], ...] = (("safe", frame.safe), ("unsafe", frame.unsafe))
    for side, (label, own) in enumerate(labels):
        short = _short_answers(context.closing, label, rng)[: rng.choice([1, 1, 2]) + (count == 5)]
        own_fitting = [text for text in own if _fits(text, context.bindings)]
        long = rng.sample(own_fitting, min(len(own_fitting), 1))
        # Both sides of a pair go into the same context, so that the contrast is seen there.
        long += [pair[side]] if pair else []
        long += rng.sample(shared.PLAIN[frame.domain][side], count)
        n_chosen = 0
        for template in [*short, *long]:
            text = _reply(template, template in short, context, frame.domain, rng)
            if n_chosen < count and len(text.split()) <= MAX_REPLY_WORDS and text not in chosen:
                chosen[text] = label
                n_chosen += 1
        if n_chosen < MIN_REPLIES_PER_LABEL:
            raise SafetyError(
                f"The frame {frame.name!r} gave only {n_chosen} {label} replies",
                f"Each context needs {MIN_REPLIES_PER_LABEL} of at most {MAX_REPLY_WORDS} words",
                "Give the frame or its domain more and shorter replies",
            )
    replies: list[Reply] = [{"text": text, "label": label} for text, label in chosen.items()]
    rng.shuffle(replies)
    return replies


def _pair(domain: Domain, context: _Context, rng: random.Random) -> shared.Pair:
    """A safe and an unsafe reply of nearly the same words that fit the context."""
    stance = context.closing.stance
    # A provocation of the bot is hostile also where it asks nothing.
    is_hostile = stance == "hostile" or (stance == "open" and domain == "bot")
    pairs = [*shared.PAIRS[domain], *(shared.REBUKES[domain] if is_hostile else ())]
    return rng.choice([pair for pair in pairs if all(_fits(side, context.bindings) for side in pair)])


def _fits(template: str, bindings: Mapping[str, str]) -> bool:
    """Whether every slot of a reply is in the context already, or may be filled freely."""
    return all(name in bindings or name in _FREE_SLOTS for name in _SLOT.findall(template))


def _short_answers(closing: Closing, label: Label, rng: random.Random) -> list[str]:
    """The short answers that carry `label` after this closing turn, in random order but for the first."""
    if closing.stance == "open" or (closing.stance == "harmless" and label == "unsafe"):
        return []
    agrees = (label == "unsafe") == (closing.stance == "hostile")
    if closing.stance == "harmless":
        agrees = rng.random() < 0.5
    answers, always = (shared.AGREE, shared.AGREE_ANY) if agrees else (shared.DISAGREE, shared.DISAGREE_ANY)
    # Only some of the answers that always fit, so that those made for the shape come up often enough.
    drawn = [*answers[closing.shape], *rng.sample(always, 4)]
    rng.shuffle(drawn)
    core = shared.CORE[closing.shape][0 if agrees else 1]
    return [rng.choice(core), *drawn] if rng.random() < SHARE_WITH_CORE else drawn


def _reply(template: str, is_short: bool, context: _Context, domain: Domain, rng: random.Random) -> str:
    """Fill a reply, sometimes with a sentence after it or a few words before it."""
    bindings = dict(context.bindings)
    if is_short and rng.random() < SHARE_WITH_TAIL:
        third = domain in ("group", "person") and rng.random() < 0.5
        template = f"{template} {rng.choice(shared.TAILS_THIRD if third else shared.TAILS)}"
    text = _fill(template, bindings, domain, rng)
    if rng.random() < SHARE_WITH_BEGINNING:
        text = f"{rng.choice(shared.BEGINNINGS)} {_lower_first(text)}"
    return text
