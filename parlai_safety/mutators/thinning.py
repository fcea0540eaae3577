"""What mutators that drop messages share: gaps, which ParlAI crosses by recursion, and its single pass in order."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from parlai.core.message import Message
from parlai.core.mutators import ManyEpisodeMutator
from parlai.core.opt import Opt

from parlai_safety.errors import SafetyError

_GIVEN_UP_AFTER = 5_000


class ThinningMutator(ManyEpisodeMutator):
    """A mutator that may leave nothing of many episodes, one after the other."""

    def __init__(self, opt: Opt) -> None:
        super().__init__(opt)
        self._empty = 0
        self._in_order = "ordered" in opt.get("datatype", "")

    def __call__(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Apply the mutator; ParlAI calls this for one episode at a time.

        Where nothing is left of an episode, ParlAI goes on to the next one by recursion, so Python is allowed a deeper
        one in a long gap. In a single pass in order, as for a dictionary, ParlAI would begin anew where the last
        episode is missing, and never end: there an example of padding, which no agent learns from, stands in for each.

        Raises:
            SafetyError: nothing was left of many episodes in a row.
        """
        left = False
        for message in super().__call__(messages):
            left = True
            yield message
        self._empty = 0 if left else self._empty + 1
        if self._empty >= _GIVEN_UP_AFTER:
            raise SafetyError(
                f"The mutator {type(self).__name__} left nothing of {self._empty} episodes in a row",
                "ParlAI looks for the next one by recursion, which would overflow, and maybe there is none",
                "Make the data once with parlai safety_filter or parlai safety_bake, which need no recursion",
            )
        if not left and self._in_order:
            yield Message.padding_example()
        # ParlAI takes two calls an episode, from somewhere below the usual limit.
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 2 * self._empty + 2_000))
