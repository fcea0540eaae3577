"""What the cards of the two detectors share: figures with their counts and intervals, and the card as text.

A card is JSON: what a detector was trained on, how good it is on what it was not trained on, and what it can be fooled
by. Every share and mean in it stands with its n and a 95 % interval that knows of clusters. Left out: judges of safety,
whose cards are made by `parlai_safety.judges.card`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from parlai_safety.judges.quality import auc_interval
from parlai_safety.statistics import Interval, clustered_mean, clustered_rate

FORMAT, VERSION = "parlai_safety detector card", 1

Entry = dict[str, Any]


def share_entry(outcomes: Sequence[bool], clusters: Sequence[str]) -> Entry:
    """A share as {"value", "low", "high", "positives", "n"}; value and interval are None where n is 0."""
    found = clustered_rate(list(outcomes), clusters)
    ends = found.interval or (None, None)
    return {"value": found.value, "low": ends[0], "high": ends[1], "positives": found.positives, "n": found.n}


def mean_entry(probabilities: Sequence[float], clusters: Sequence[str]) -> Entry:
    """A mean of probabilities as {"value", "low", "high", "n"}; the interval is None where nothing bounds it."""
    found = clustered_mean(list(probabilities), clusters, seed=0, within=Interval(0.0, 1.0))
    ends = found.interval or (None, None)
    return {"value": found.value, "low": ends[0], "high": ends[1], "n": found.n}


def auc_entry(scores: Sequence[float], labels: Sequence[bool], clusters: Sequence[str]) -> Entry:
    """The area under the ROC curve as {"value", "low", "high", "positives", "n"}, with a cluster bootstrap interval.

    Args:
        scores: N scores.
        labels: N labels, both of which occur.
        clusters: N names; what shares one is resampled together.
    """
    from sklearn.metrics import roc_auc_score

    ends = auc_interval(scores, labels, clusters) or (None, None)
    value = float(roc_auc_score(labels, scores))
    return {"value": value, "low": ends[0], "high": ends[1], "positives": sum(labels), "n": len(labels)}


def entry_words(entry: Mapping[str, Any], digits: int = 3) -> str:
    """An entry as in "0.912 [0.88, 0.94] (n 240)"."""
    if entry["value"] is None:
        return f"not measured (n {entry['n']})"
    ends = "" if entry["low"] is None else f" [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"
    return f"{entry['value']:.{digits}f}{ends} (n {entry['n']})"


def card_text(card: Mapping[str, Any]) -> str:
    """A card for a terminal: one figure a line, parts indented under their names."""
    return "\n".join(_lines(card, ""))


def _lines(part: Mapping[str, Any], margin: str) -> Iterator[str]:
    for key, value in part.items():
        name = margin + str(key).replace("_", " ")
        if isinstance(value, Mapping) and "value" in value and "n" in value:
            yield f"{name}: {entry_words(value)}"
        elif isinstance(value, Mapping):
            yield f"{name}:"
            yield from _lines(value, margin + "  ")
        elif isinstance(value, list):
            yield f"{name}:"
            yield from (f"{margin}  - {item}" for item in value)
        elif isinstance(value, float):
            yield f"{name}: {value:.4g}"
        else:
            yield f"{name}: {value}"
