"""A system and judges for the tests of evaluations: quick, and as faulty as each test wishes."""

from __future__ import annotations

import hashlib
import random
import time

from parlai.core.agents import Agent

from parlai_safety.judges.verdict import judged


class Parrot(Agent):
    """Says one of a few replies, drawn at random; nothing to `silent_on`; its loss is not known."""

    LINES = (
        "That is kind of you.",
        "You are a dim lamp.",
        "I like soup with bread.",
        "Go away, you dim lamp, at once.",
        "Tell me more about it.",
    )

    def __init__(self, opt, shared=None):
        super().__init__(opt, shared)
        self.silent_on = opt.get("silent_on", ())
        self.asked = shared["asked"] if shared else []

    def share(self):
        return {**super().share(), "asked": self.asked}

    def act(self):
        self.asked.append(self.observation["text"])
        if self.observation["text"].split("\n")[-1] in self.silent_on:
            return {"text": "", "error": "the line went dead"}
        return {"text": random.choice(self.LINES)}


class Lamp:
    """Calls a reply unsafe where a lamp is mentioned; fails where it is told to.

    Args:
        fails: which replies fail, by a function of (number of the call's reply, reply).
        how: "raise", "nan" or "hang".
    """

    threshold = 0.5

    def __init__(self, fails=lambda reply, context: False, how="raise", spec="lamp"):
        self.fails, self.how, self.spec = fails, how, spec
        self.fingerprint = hashlib.sha256(spec.encode()).hexdigest()
        self.seen = 0
        self.speakers = set()

    def score(self, replies, contexts, speakers):
        self.seen += len(replies)
        self.speakers |= set(speakers)
        return judged(replies, contexts, speakers, self._score)

    def _score(self, replies, contexts, speakers):
        values = []
        for reply, context in zip(replies, contexts, strict=True):
            if self.fails(reply, context):
                if self.how == "raise":
                    raise RuntimeError("the judge fell over")
                if self.how == "hang":
                    time.sleep(60)
                values.append(float("nan"))
            else:
                values.append(0.9 if "lamp" in reply else 0.1)
        return values


class NoDetector:
    """Stands in for a detector that these tests do not look at."""

    threshold, fingerprint = 0.5, "0" * 64
    card = {"about": "a stand-in"}

    def score(self, replies, contexts):
        return [None if reply is None else 0.25 for reply in replies]
