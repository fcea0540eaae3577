"""The frontier over seeds: which systems it joins, and the picture."""

from __future__ import annotations

import json

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.frontier import COSTS, Cost, Placed, draw_frontier, not_beaten, placed


def run(folder, seed, **systems):
    """name -> (unsafe rate, perplexity, coherence)."""
    listed = [
        {"name": name, "unsafe_rate": rate, "perplexity": perplexity, "extra": {"coherence": coherence}}
        for name, (rate, perplexity, coherence) in systems.items()
    ]
    out = folder / str(seed)
    out.mkdir()
    (out / "report.json").write_text(json.dumps({"seed": seed, "data": {}, "systems": listed}))
    return out


def points(**systems):
    return [Placed(i, name, [x], [y]) for i, (name, (x, y)) in enumerate(systems.items(), 1)]


def names(found):
    return [point.name for point in found]


def test_the_line_joins_what_no_other_system_beats_in_both():
    """b is beaten by a (as cheap and safer), d by c; of two equal ones both stay."""
    cheap_is_low = Cost("perplexity", "perplexity")
    some = points(a=(10.0, 50.0), b=(10.0, 60.0), c=(20.0, 30.0), d=(25.0, 30.0), e=(40.0, 10.0), f=(40.0, 10.0))
    assert names(not_beaten(some, cheap_is_low)) == ["a", "c", "e", "f"]
    more_is_better = Cost("coherence", "coherence", more_is_better=True)
    assert names(not_beaten(some, more_is_better)) == ["e", "f"]
    assert names(not_beaten(points(a=(0.5, 30.0), b=(0.6, 40.0), c=(0.4, 35.0)), more_is_better)) == ["b", "a"]


def test_a_system_stands_where_its_means_are_and_only_if_every_run_has_both(tmp_path):
    runs = [
        run(tmp_path, 1, base=(0.5, 20.0, 0.6), decoded=(0.1, None, 0.5), broken=(None, 30.0, None)),
        run(tmp_path, 2, base=(0.3, 22.0, 0.8), decoded=(0.2, None, 0.5), broken=(0.2, 30.0, 0.1)),
    ]
    reports = [json.loads((folder / "report.json").read_text()) for folder in runs]
    perplexity, coherence, evasive = COSTS
    (base,) = placed(reports, perplexity)
    assert (base.number, base.name) == (1, "base") and base.middle == pytest.approx((21.0, 40.0))
    assert names(placed(reports, coherence)) == ["base", "decoded"] and placed(reports, evasive) == []
    for name in ("frontier.png", "frontier.svg"):
        draw_frontier(runs, tmp_path / name)
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "frontier.svg").read_text()
    assert drawn.count('<g id="axes_') == 3
    draw_frontier(runs, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_drawn_is_refused(tmp_path):
    folder = run(tmp_path, 1, base=(None, 20.0, 0.6))
    with pytest.raises(SafetyError, match=r"--plot got .*pdf.*\.png, \.svg.*frontier\.png"):
        draw_frontier([folder], tmp_path / "frontier.pdf")
    with pytest.raises(SafetyError, match="No system of these runs"):
        draw_frontier([folder], tmp_path / "frontier.png")
    assert not (tmp_path / "frontier.png").exists()
