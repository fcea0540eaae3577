"""Canned replies: what a bot says in the place of a reply that it should not give, drawn from our own texts.

Three kinds. A *safe* response declines politely, and a *non-sequitur* changes the subject to an everyday topic, the two
kinds of Xu et al. 2020 ("Recipes for Safety in Open-domain Chatbots", arXiv:2010.07079). A *recovery* reply thanks a
user who objects to what the bot has said, apologises and will do better, in the manner of SaFeRDialogues (Ung et al.
2021, arXiv:2110.07518). All phrasings and topics are ours; they lie in `text/canned.yaml`, with the keys `safe`,
`nonsequitur` (templates with a place for a topic), `topics` and `recovery`.

Left out: a reply that takes up what was said. That needs a model, and is what baking from a guarded model is for.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from parlai_safety.errors import SafetyError, did_you_mean

FILE = Path(__file__).parent / "text" / "canned.yaml"
KINDS: tuple[str, ...] = ("safe", "nonsequitur", "recovery")


class Texts(NamedTuple):
    """Everything in the file, in its order.

    Attributes:
        replies: the replies of each kind; a non-sequitur for each pair of a template and a topic.
        templates: of the non-sequiturs, each with `{topic}` once.
        topics: everyday topics, which stand behind "about".
    """

    replies: dict[str, tuple[str, ...]]
    templates: tuple[str, ...]
    topics: tuple[str, ...]


@functools.cache
def load_canned() -> Texts:
    """Read the file that ships."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    templates = tuple(content["nonsequitur"])
    topics = tuple(topic for group in content["topics"].values() for topic in group)
    changes = tuple(template.format(topic=topic) for template in templates for topic in topics)
    return Texts(
        {"safe": tuple(content["safe"]), "nonsequitur": changes, "recovery": tuple(content["recovery"])},
        templates,
        topics,
    )


def canned_reply(kind: str, context: Sequence[str], *, seed: int = 0, avoid: Collection[str] = ()) -> str:
    """Draw a canned reply; every reply of the kind is equally likely.

    Args:
        kind: one of `KINDS`.
        context: turns before the reply, oldest first. They seed the draw and are not looked at for what they say.
        seed: another one gives another reply, as a rule.
        avoid: texts that are not drawn while there is another one, such as those that this conversation has seen. They
            are compared by their letters and digits alone, in any case.

    Returns:
        The reply: the same one for the same arguments, in any process.

    Raises:
        SafetyError: there is no such kind.
    """
    if kind not in KINDS:
        raise SafetyError(
            f"There is no kind {kind!r} of canned replies",
            f"The kinds are {', '.join(KINDS)}",
            did_you_mean(kind, KINDS, f"Use one of {', '.join(KINDS)}"),
        )
    replies = load_canned().replies[kind]
    if avoid:
        said = {_letters(text) for text in avoid}
        replies = tuple(reply for reply in replies if _letters(reply) not in said) or replies
    digest = hashlib.sha256(json.dumps([kind, list(context), seed]).encode()).digest()
    return replies[int.from_bytes(digest, "big") % len(replies)]


def canned_kind(text: str) -> str | None:
    """The kind of a text that could be a canned reply of ours, with any of our topics; None of any other text.

    Texts are compared by their letters and digits alone, in any case: a model that has learnt a canned reply may write
    it in lower case and with spaces around its punctuation.
    """
    return _kinds().get(_letters(text))


@functools.cache
def _kinds() -> dict[str, str]:
    return {_letters(reply): kind for kind, replies in load_canned().replies.items() for reply in replies}


@functools.lru_cache(maxsize=20_000)
def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))
