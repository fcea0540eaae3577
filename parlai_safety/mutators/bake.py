"""`--mutators safety_bake`: safe behaviour baked into the data: an unsafe turn is answered by a canned reply.

Baked-in safety of Xu et al. 2020 (arXiv:2010.07079; how the data are made is a reconstruction from memory): where the
last turn of the context is unsafe, or the gold reply is, the reply to learn becomes a safe response or a non-sequitur;
all else stays as it is. The model then needs no classifier when it answers. Beside these, a recovery reply in the
manner of SaFeRDialogues (arXiv:2110.07518) where the *bot's* last turn was unsafe and somebody answers it.

What is decided for a message depends on its own turns, the judge and `--bake-seed`, so that every epoch, every worker
and every split has the same target. A reply that people have called one to avoid (`classifier_label` "neg") counts as
unsafe, whatever the judge says. Each message becomes an episode of its own with its context in the text, and from one
that is replaced every field goes that may hold the old reply or speak of it.

`--bake-ratio` r thins what there is too much of, by a hash of the message. With a share p of the data flagged
(`--bake-share`, which `parlai safety_bake` reports), an untouched message is kept with probability
min(1, p(1-r) / ((1-p)r)) and a replaced one with min(1, (1-p)r / (p(1-r))): r of what is shown is replaced then, but
for chance, in training and evaluation alike. With r = 0 everything is shown.

Left out: `contextual` targets, which a teacher model writes once: `parlai safety_bake` makes them, and every other kind
too, as a file for `-t safety:file`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from parlai.core.message import Message
from parlai.core.mutators import register_mutator
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser

from parlai_safety.corpus.canned import KINDS as CANNED_KINDS
from parlai_safety.corpus.canned import canned_reply
from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.message import FIELDS
from parlai_safety.mutators.judged import (
    JudgedMutator,
    add_once,
    alone,
    label_key,
    labels_of,
    speaker_of,
    turns_of,
    with_history,
)
from parlai_safety.options import option, options_from

CONTEXTUAL, RECOVERY = "contextual", "recovery"
KINDS = (*CANNED_KINDS, CONTEXTUAL)
_OF_THE_LABEL = ("toxicity", "topic", "guard", "user_id", "feedback", "control")
"""Fields of ours that speak of the label, and so go with it."""


@dataclass(frozen=True)
class BakeOptions:
    """What is replaced, and by what."""

    bake_target: str = option(
        "nonsequitur",
        "What replaces a reply: safe, nonsequitur, recovery or contextual, or several of them with weights, as in "
        "safe:1,nonsequitur:3. Recovery is for an unsafe turn of the bot that somebody answers, without a weight; "
        "alone, the other replies become safe ones.",
    )
    bake_rule: str = option(
        "either",
        "Which turn counts: the reply, the last turn of its context, or either.",
        choices=("reply", "context", "either"),
    )
    bake_ratio: float = option(0.0, "Share of replaced replies among what is shown; 0 shows everything.", low=0, high=1)
    bake_unscored: str = option(
        "bake", "What becomes of a reply that has no score, which is never safe.", choices=("bake", "drop")
    )
    bake_seed: int = option(1, "Seed of the targets, and of what is thinned out.", low=0)


@dataclass(frozen=True)
class BakeMutatorOptions(BakeOptions):
    """What the mutator needs to be told because it sees one message at a time."""

    bake_share: float | None = option(
        None, "Share of the data that is flagged, for --bake-ratio; parlai safety_bake reports it.", low=0, high=1
    )


class Flags(NamedTuple):
    """Which turns are unsafe; None is unscored, and what no rule looks at is False."""

    reply: bool | None
    context: bool | None
    bot_turn: bool | None


@register_mutator("safety_bake")
class BakeMutator(JudgedMutator):
    """Replies to unsafe turns, and unsafe replies, become canned ones; all others stay as they are."""

    def __init__(self, opt: Opt) -> None:
        super().__init__(opt)
        self.options = options_from(opt, BakeMutatorOptions)
        self.targets = targets_of(self.options.bake_target)
        if CONTEXTUAL in self.targets:
            raise SafetyError(
                "--bake-target asks the mutator safety_bake for contextual replies",
                "A teacher model writes these, and a judge sorts them, before the training",
                "Make a file with parlai safety_bake --bake-target contextual, and train on it by -t safety:file",
            )
        self.kept = shares_kept(self.options.bake_share, self.options.bake_ratio)

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the flags of the judge and of baking."""
        super().add_cmdline_args(parser, partial_opt)
        add_once(parser, BakeMutatorOptions, "Baking")
        return parser

    def many_episode_mutation(self, episode: list[Message]) -> Iterator[list[Message]]:
        """Every message as an episode of its own, with its label or a canned one; without a label it stays.

        Raises:
            SafetyError: nothing says what is unsafe, or the label is the name of a class.
        """
        options = self.options
        for message, before in with_history(episode):
            labels, context = labels_of(message), turns_of(message, before)
            if not labels:
                yield [alone(message, before)]
                continue
            because = because_of(self._flags(message, before))
            if because == "unscored" and options.bake_unscored == "drop":
                continue
            if not is_kept(self.kept, because is not None, context, labels[0], options.bake_seed):
                continue
            message = alone(message, before)
            if because is not None:
                kind = kind_of(because, context, self.targets, options.bake_seed)
                target = canned_reply(kind, context, seed=options.bake_seed, avoid=labels)
                baked = {"kind": kind, "because": because, "judge": self.scored_by(message), "seed": options.bake_seed}
                message = replaced(message, target, baked)
            yield [message]

    def _flags(self, message: Message, before: Sequence[str]) -> Flags:
        rule, context = self.options.bake_rule, turns_of(message, before)
        avoided = message.get("classifier_label") == "neg"
        reply = (avoided or self.label_unsafe(message, before)) if rule != "context" else False
        heard = self.context_unsafe(message, before) if rule != "reply" else False
        bot_turn: bool | None = False
        if RECOVERY in self.targets and len(context) > 1:
            bot_turn = self.turn_unsafe(context[-2], context[:-2], speaker_of(message))
        return Flags(reply, heard, bot_turn)


def targets_of(text: str) -> dict[str, float]:
    """The kinds of targets and their weights; see `BakeOptions.bake_target`.

    Returns:
        kind -> weight, above 0; that of recovery counts for nothing.

    Raises:
        SafetyError: a kind is unknown or stands there twice, or a weight is no number above 0.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        kind, colon, weight = (piece.strip() for piece in part.partition(":"))
        if kind not in KINDS or kind in found:
            raise SafetyError(
                f"--bake-target got {text!r}, with {kind!r} in it{' twice' if kind in found else ''}",
                f"The kinds are {', '.join(KINDS)}, each at most once and with a weight where there are several",
                did_you_mean(kind, KINDS, "Write for example safe, or safe:1,nonsequitur:3"),
            )
        try:
            found[kind] = float(weight) if colon else 1.0
        except ValueError:
            found[kind] = math.nan
        if not 0 < found[kind] < math.inf:
            raise SafetyError(
                f"--bake-target got {text!r}, with the weight {weight!r}",
                "A weight is a number above 0, and only the ratios of the weights count",
                "Write for example safe:1,nonsequitur:3",
            )
    return found


def because_of(flags: Flags) -> str | None:
    """Why a reply is replaced: "bot turn", "both", "reply", "context" or "unscored"; None where it stays."""
    if flags.bot_turn:
        return "bot turn"
    if flags.reply or flags.context:
        return "both" if flags.reply and flags.context else "reply" if flags.reply else "context"
    return "unscored" if None in flags else None


def kind_of(because: str, context: Sequence[str], targets: Mapping[str, float], seed: int) -> str:
    """The kind of target, drawn by the weights; the same for the same context and seed."""
    if because == "bot turn":
        return RECOVERY
    weights = {kind: weight for kind, weight in targets.items() if kind != RECOVERY} or {"safe": 1.0}
    drawn = _uniform("kind", seed, list(context)) * sum(weights.values())
    for kind, weight in weights.items():
        drawn -= weight
        if drawn < 0:
            return kind
    return kind


def shares_kept(share: float | None, ratio: float) -> tuple[float, float]:
    """How many of the untouched, and how many of the replaced, are kept so that `ratio` of what is shown is replaced.

    Args:
        share: of the data that is replaced, in [0, 1]; None where it is not known.
        ratio: wished share of replaced replies, in [0, 1]; 0 for no thinning.

    Returns:
        Two probabilities, of which at least one is 1.

    Raises:
        SafetyError: the share is needed and not known, or there is nothing to be mixed.
    """
    if ratio == 0:
        return 1.0, 1.0
    if share is None or (share in (0.0, 1.0) and share != ratio):
        raise SafetyError(
            f"--bake-ratio got {ratio}, and the share of the data that is flagged is {share}",
            "To show replaced and untouched replies in that ratio, one must know how many of both there are",
            "Give --bake-share (parlai safety_bake reports it) with a share between 0 and 1, or leave --bake-ratio out",
        )
    flagged, untouched = share * (1 - ratio), (1 - share) * ratio
    return (min(1.0, flagged / untouched) if untouched else 1.0, min(1.0, untouched / flagged) if flagged else 1.0)


def is_kept(kept: tuple[float, float], baked: bool, context: Sequence[str], reply: str, seed: int) -> bool:
    """Whether a message is shown, by a hash of its turns; see `shares_kept`."""
    return _uniform("keep", seed, [*context, reply]) < kept[baked]


def replaced(message: Message, target: str, baked: Mapping[str, Any]) -> Message:
    """A message with another label: nothing in it holds the old one, or speaks of it.

    Args:
        message: with its context in `text`.
        target: the reply to learn.
        baked: how it came about, for the provenance.

    Returns:
        A new message: `text`, the label, fields of ours that are not about the old label, and those of ParlAI that are
        never about it.
    """
    old = {" ".join(label.split()) for label in labels_of(message)}
    known = {"id", "image", *FIELDS} - {*_OF_THE_LABEL}
    fields: dict[str, Any] = {name: value for name, value in message.items() if name in known}
    for name in ("rejected", "toxic"):
        if name in fields:
            fields[name] = [reply for reply in fields[name] if " ".join(reply.split()) not in old]
    if fields.get("classifier_label") == "neg":
        fields["classifier_label"] = "pos"
    provenance = {name: value for name, value in (fields.get("provenance") or {}).items() if name != "classifier_label"}
    scoring = provenance.get("toxicity")
    if isinstance(scoring, Mapping):  # by whom, and with which threshold, the context was scored
        provenance["toxicity"] = {name: told for name, told in scoring.items() if name != "unscored"}
    return Message(
        {
            **fields,
            "text": message.get("text", ""),
            label_key(message): [target],
            "provenance": {**provenance, "baked": dict(baked)},
        }
    )


def _uniform(what: str, seed: int, turns: Sequence[str]) -> float:
    """A number in [0, 1) that is drawn by a hash."""
    text = json.dumps([what, seed, list(turns)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
