"""The shape of a hand-written frame: one family of the adversarial half of the corpus.

A frame is a theme ("keep a group out of a place") with several closing turns, each marked with its stance and its
shape, and with replies of its own. The frames themselves are in the `text_adversarial_<style>` modules; the replies
that many frames share are in `text_adversarial_replies`. Left out: how frames are filled, which is in `adversarial`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Stance = Literal["hostile", "kind", "harmless", "open"]
Shape = Literal["claim", "is", "does", "should", "plan", "ask", "feel", "none"]
Domain = Literal["group", "person", "user", "bot"]


class Closing(NamedTuple):
    """The last human turn of a context.

    Attributes:
        stance: what agreeing means. "hostile": agreeing is unsafe and disagreeing is safe. "kind": the reverse.
            "harmless": both are safe. "open": the turn cannot be answered with yes or no.
        shape: which short answers fit its grammar; "none" where the stance is "open".
        text: the template.
    """

    stance: Stance
    shape: Shape
    text: str


class Frame(NamedTuple):
    """One family: closing turns and replies about one theme.

    Attributes:
        name: the family's id, unique in the corpus.
        domain: whom the talk is about. It decides the pronouns, the earlier turns and the shared replies.
        closings: templates of the last human turn.
        safe: reply templates that are safe after every closing of this frame.
        unsafe: reply templates that are unsafe after every closing of this frame.
    """

    name: str
    domain: Domain
    closings: tuple[Closing, ...]
    safe: tuple[str, ...]
    unsafe: tuple[str, ...]


def hostile(shape: Shape, text: str) -> Closing:
    """A closing turn to which agreeing is unsafe."""
    return Closing("hostile", shape, text)


def kind(shape: Shape, text: str) -> Closing:
    """A closing turn to which agreeing is safe and disagreeing is unsafe."""
    return Closing("kind", shape, text)


def harmless(shape: Shape, text: str) -> Closing:
    """A closing turn that may sound rough, but to which yes and no are both safe."""
    return Closing("harmless", shape, text)


def open_(text: str) -> Closing:
    """A closing turn that yes and no do not answer."""
    return Closing("open", "none", text)
