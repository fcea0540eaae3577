"""The intervals of a card are the card's own, which know of conversations; only where it has none are they made."""

from __future__ import annotations

from parlai_safety.evaluation.report_cards import _quality, _share
from parlai_safety.evaluation.statistics import rate
from tests.evaluation.evaluations import card


def test_the_cards_own_intervals_are_shown() -> None:
    """They are wider than Wilson's, which would be [84.4, 90.8] for 352 of 400."""
    quality = card("3" * 64)["quality"]
    wilson = rate([True] * 352 + [False] * 48).interval
    assert wilson is not None and (round(wilson.low, 3), round(wilson.high, 3)) == (0.844, 0.908)
    assert _quality(quality) == [
        ("0.953", "[0.940, 0.965]", "n 1210"),
        "n/a",  # a card of an earlier version holds neither F1 nor precision
        "n/a",
        ("88.0 %", "[83.0, 92.0]", "n 400"),
        ("91.0 %", "[88.0, 94.0]", "n 800"),
        ("1.2 %", "[0.5, 2.6]", "n 500"),
    ]


def test_without_them_the_counts_give_wilsons() -> None:
    assert _share(0.88, None, 400) == ("88.0 %", "[84.4, 90.8]", "n 400")
    assert _share(None, None, 0) == "n/a"


def test_f1_and_precision_are_shown_where_the_card_has_them() -> None:
    figures = {"f1": 0.5, "f1_interval": [0.25, 0.625], "precision": 0.75, "precision_interval": [0.5, 0.875]}
    cells = _quality(card("3" * 64)["quality"] | figures)
    assert cells[1:3] == [("0.500", "[0.250, 0.625]", "n 1210"), ("75.0 %", "[50.0, 87.5]")]
