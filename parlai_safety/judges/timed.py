"""A judge with a limit on its time: a call that takes too long is given up, and its replies are unscored.

The call runs in a thread of its own. Python cannot stop a thread, so one that hangs goes on until the process ends,
which it does not delay; it holds its memory, and whatever it locked, until then. Thus the judge inside must bear two
calls at a time, as those of this package do, and after several calls in a row that were given up nothing more is
tried. Left out: a process for each judge, which could be ended but would hold a second copy of every model.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from parlai_safety.errors import SafetyError
from parlai_safety.judges.verdict import Judge, Speaker, Verdict, check_batch, unscored
from parlai_safety.judges.wrapped import WrappedJudge

GIVE_UP_AFTER = 10


class TimedJudge(WrappedJudge):
    """A judge that is not waited for longer than some seconds a call.

    Where a batch takes too long, its replies are tried one by one, each with the same limit. Those that take too long
    again are unscored. Choose a limit that a whole batch meets on an ordinary day: one reply that hangs then costs
    twice the limit.

    Args:
        judge: the judge; its spec, threshold and fingerprint are this one's too.
        seconds: how long a call may take; above 0.
        give_up_after: calls given up in a row that end it all; at least 1.

    Raises:
        SafetyError: a number is out of range.
    """

    def __init__(self, judge: Judge, seconds: float, *, give_up_after: int = GIVE_UP_AFTER) -> None:
        if not 0 < seconds < threading.TIMEOUT_MAX or give_up_after < 1:
            raise SafetyError(
                f"The limit is {seconds} s, with an end after {give_up_after} calls given up",
                "A judge needs some time to answer",
                "Choose a limit above 0 s and an end after 1 call or more",
            )
        super().__init__(judge)
        self.seconds, self.give_up_after = seconds, give_up_after
        self._given_up_in_a_row = 0

    def score(
        self, replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]
    ) -> list[Verdict]:
        """Judge a batch within the limit; see `Judge.score`. What the judge raises is raised here.

        Raises:
            SafetyError: as the judge, and where `give_up_after` calls in a row were given up.
        """
        check_batch(replies, contexts, speakers)
        verdicts = self._within_limit(replies, contexts, speakers)
        if verdicts is None and len(replies) == 1:
            return [unscored(f"no verdict within {self.seconds:g} s")]
        if verdicts is None:
            return [self.score([r], [c], [s])[0] for r, c, s in zip(replies, contexts, speakers, strict=True)]
        return verdicts

    def _within_limit(
        self, replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]
    ) -> list[Verdict] | None:
        """The verdicts, or None where they took too long."""
        answers: queue.SimpleQueue[list[Verdict] | BaseException] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self.judge.score(replies, contexts, speakers))
            except BaseException as error:  # it belongs to the caller, who waits for an answer
                answers.put(error)

        threading.Thread(target=ask, name=f"judge {self.spec}", daemon=True).start()
        try:
            answer = answers.get(timeout=self.seconds)
        except queue.Empty:
            self._given_up_in_a_row += 1
            if self._given_up_in_a_row >= self.give_up_after:
                raise SafetyError(
                    f"The judge {self.spec!r} gave no verdict within {self.seconds:g} s, {self._given_up_in_a_row} "
                    "times in a row",
                    "It hangs or is too slow for this limit, and every further reply would cost as much time",
                    "See to the judge, or allow it more time",
                ) from None
            return None
        self._given_up_in_a_row = 0
        if isinstance(answer, BaseException):
            raise answer
        return answer
