"""Judges: who says whether a reply is safe, unsafe, or cannot be scored.

`load_judge("linear:FILE")` gives anything that follows the `Judge` protocol; `known_judges()` lists what can be named.
Importing this package is cheap: ParlAI, torch and scikit-learn are imported by a judge when it is loaded or scores.
"""

from parlai_safety.judges.spec import known_judges, load_judge, parse
from parlai_safety.judges.verdict import Judge, Speaker, Verdict, is_unsafe, safe_score, scored, unscored

__all__ = [
    "Judge",
    "Speaker",
    "Verdict",
    "is_unsafe",
    "known_judges",
    "load_judge",
    "parse",
    "safe_score",
    "scored",
    "unscored",
]
