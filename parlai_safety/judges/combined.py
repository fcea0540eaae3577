"""Several judges as one: a reply is unsafe if any of them says so.

Own rule, with no paper behind it: the union of judges trades specificity for sensitivity, and only the two decisions
are kept exactly. What it leaves out: the parts' scores are not independent evidence and are not multiplied or
averaged, and the joint scale is not a calibrated probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from parlai_safety.judges.verdict import (
    Judge,
    Speaker,
    Verdict,
    check_batch,
    check_threshold,
    fingerprint_of,
    safe_score,
    scored,
    unscored,
)


def on_common_scale(p_unsafe: float, threshold: float) -> float:
    """Move a part's score to the scale where that part's threshold stands at 0.5.

    The map is linear on each side of the threshold t and keeps 0, 1 and the order of scores:
    0.5 * p / t for p < t, and 0.5 + 0.5 * (p - t) / (1 - t) for p >= t. So p >= t exactly where the result is >= 0.5.

    Args:
        p_unsafe: the score, in [0, 1].
        threshold: the part's threshold, strictly between 0 and 1.

    Returns:
        The score on the common scale, in [0, 1]. With t = 0.2: 0.1 -> 0.25, 0.2 -> 0.5, 0.6 -> 0.75.
    """
    if p_unsafe < threshold:
        return 0.5 * p_unsafe / threshold
    return min(1.0, 0.5 + 0.5 * (p_unsafe - threshold) / (1.0 - threshold))


class CombinedJudge:
    """Unsafe if any part says unsafe; written `A+B`.

    Its p_unsafe is the largest of the parts' scores on the common scale of `on_common_scale`. A reply that some part
    could not score is unscored, unless another part already puts it at or above the combined threshold.

    Args:
        parts: two or more judges.
        threshold: on the common scale; 0.5 keeps every part's own decision.

    Raises:
        SafetyError: the threshold is not strictly between 0 and 1.
    """

    def __init__(self, parts: Sequence[Judge], threshold: float = 0.5) -> None:
        self.parts = list(parts)
        self.threshold = check_threshold(threshold)
        self.spec = "+".join(part.spec for part in self.parts)

    @cached_property
    def fingerprint(self) -> str:
        """Of the parts and their thresholds, which place their scores on the common scale; in any order."""
        return fingerprint_of("+", 1, parts=sorted([part.fingerprint, part.threshold] for part in self.parts))

    def score(
        self, replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]
    ) -> list[Verdict]:
        """Judge a batch with every part and join the verdicts; see `Judge.score`."""
        check_batch(replies, contexts, speakers)
        by_part = [safe_score(part, replies, contexts, speakers) for part in self.parts]
        return [self._join(verdicts) for verdicts in zip(*by_part, strict=True)]

    def _join(self, verdicts: Sequence[Verdict]) -> Verdict:
        values, failures = [], []
        for part, verdict in zip(self.parts, verdicts, strict=True):
            if verdict.p_unsafe is None:
                failures.append(f"{part.spec}: {verdict.reason}")
            else:
                values.append(on_common_scale(verdict.p_unsafe, part.threshold))
        if failures and max(values, default=0.0) < self.threshold:
            return unscored("; ".join(failures))
        return scored(max(values))
