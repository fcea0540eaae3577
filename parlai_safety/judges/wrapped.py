"""The base of judges that stand before one other judge: to the outside they are that judge.

Left out: how they score, which is what each of them is for.
"""

from __future__ import annotations

from pathlib import Path

from parlai_safety.judges.verdict import Judge


class WrappedJudge:
    """A judge with the name, threshold and fingerprint of the one inside, because it changes none of its scores.

    Args:
        judge: the one inside.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    @property
    def spec(self) -> str:
        """The judge's own."""
        return self.judge.spec

    @property
    def threshold(self) -> float:
        """The judge's own."""
        return self.judge.threshold

    @property
    def fingerprint(self) -> str:
        """The judge's own."""
        return self.judge.fingerprint

    @property
    def file(self) -> Path | None:
        """Where a judge of the zoo lies, beside its card; None of any other."""
        return getattr(self.judge, "file", None)
