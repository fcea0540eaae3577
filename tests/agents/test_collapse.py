"""The monitor of collapsing training: its running mean, its state, and how a training ends by it."""

from __future__ import annotations

import math

import pytest
import torch

from parlai_safety.agents.collapse import CollapseMonitor, CollapseOptions
from parlai_safety.loops.training import train
from tests.agents.small import run
from tests.agents.small_triples import begun, triple_options

FALLING = {
    "adpo_anchor": "reference", "adpo_lambda": 50.0, "adpo_gamma": 1.0, "collapse_drift": 0.3, "collapse_window": 3,
    "learningrate": 0.3,
}  # fmt: skip


def fed(monitor, drifts, *, start=0):
    """What the monitor says of updates with chosen replies of 10 tokens that gained so much each."""
    return [monitor.see(start + i, 10 * drift, 10, loss=1.0) for i, drift in enumerate(drifts)]


def test_the_mean_over_the_window_counts():
    monitor = CollapseMonitor(CollapseOptions(collapse_drift=1.0, collapse_window=3))
    assert fed(monitor, [-2.0, -2.0]) == [None, None]  # the window is not full
    assert monitor.see(2, -5.0, 20, loss=1.0) is not None and monitor.drift == pytest.approx(-45 / 40)
    assert monitor.collapsed and monitor.first[0] == 2 and "1.12 nats a token" in monitor.first[1]
    assert fed(monitor, [-2.0], start=3) == [None] and monitor.collapsed  # said once
    assert fed(monitor, [1.0, 1.0], start=4) == [None, None] and not monitor.collapsed
    assert fed(monitor, [-9.0], start=6) != [None] and monitor.first[0] == 2


def test_batches_of_one_update_are_one_entry():
    monitor = CollapseMonitor(CollapseOptions(collapse_drift=1.0, collapse_window=2))
    for _ in range(5):
        assert monitor.see(7, -20.0, 10, loss=1.0) is None
    assert monitor.see(8, -20.0, 10, loss=1.0) is not None
    assert monitor.see(9, 0.0, 0, loss=1.0) is None and monitor.drift == -2  # ordinary talk alone says nothing


@pytest.mark.parametrize("loss", (math.nan, math.inf))
def test_a_loss_that_is_no_number_is_a_collapse(loss):
    """Even with the drift switched off; its drift, which may be no number too, is not taken in."""
    monitor = CollapseMonitor(CollapseOptions(collapse_drift=0.0, collapse_window=1))
    assert fed(monitor, [-1000.0]) == [None]
    assert monitor.see(1, math.nan, 10, loss=loss) == f"the loss is {loss}"
    assert monitor.drift == -1000


def test_a_restored_monitor_goes_on():
    one, other = (CollapseMonitor(CollapseOptions(collapse_drift=1.0, collapse_window=3)) for _ in range(2))
    fed(one, [-2.0, -2.0])
    other.restore(one.state())
    assert fed(other, [-2.0], start=2) == fed(one, [-2.0], start=2) != [None]
    smaller = CollapseMonitor(CollapseOptions(collapse_window=1))
    smaller.restore(one.state())
    assert smaller.drift == -2 and smaller.first == one.first


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Triples whose toxic reply is the chosen one too, so that adversarial DPO lowers it."""
    found = begun("", tmp_path_factory.mktemp("collapse"))
    row = '{"context": ["Hi."], "reply": "Fine, thanks.", "rejected": ["You dim lamp."], "toxic": ["Fine, thanks."]}\n'
    (found / "triples.jsonl").write_text(4 * row)
    return found


def test_a_collapse_stops_the_training_and_saves(folder, tmp_path):
    """And a resumed run stops at once, as its state says what went before."""
    settings = triple_options("safety:adpo", folder, tmp_path / "model", max_train_steps=200, **FALLING)
    loop, reports = run(**settings)
    states = torch.load(tmp_path / "model", weights_only=False)
    updates, why = states["collapse"]["first"]
    assert 3 <= updates < 150 and "nats a token" in why and len(states["collapse"]["window"]) == 3
    assert loop._train_steps == updates == states["number_training_updates"]
    assert float(reports[-1]["collapsed"]) == 0 and float(reports[-1]["chosen_drift"]) < -0.2
    loop, _ = run(**settings)
    assert torch.load(tmp_path / "model", weights_only=False)["number_training_updates"] == updates


def test_a_warning_goes_on(folder, tmp_path):
    settings = triple_options("safety:adpo", folder, tmp_path / "model", max_train_steps=40, **FALLING)
    loop, reports = run(**settings, collapse_action="warn")
    assert loop._train_steps == 40 and {float(report["collapsed"]) for report in reports} == {0.0, 1.0}


def test_our_own_loop_ends_too(folder, tmp_path):
    """By a loss that is no number."""
    settings = triple_options("safety:adpo", folder, tmp_path / "model", **FALLING)
    for name in ("model_file", "max_train_steps", "loglevel", "log_every_n_steps"):
        del settings[name]
    settings.update(learningrate=1e30, gradient_clip=-1.0)
    train("A run", model_file=tmp_path / "model", max_train_steps=30, seed=1, **settings)
    states = torch.load(tmp_path / "model", weights_only=False)
    assert states["number_training_updates"] < 30 and "the loss is" in states["collapse"]["first"][1]
