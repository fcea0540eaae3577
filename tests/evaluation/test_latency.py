"""The latency of several systems: who is timed, in which order, and what the ratio is."""

from __future__ import annotations

import pytest

from parlai_safety.evaluation import latency
from parlai_safety.evaluation.latency import WARM_UP, latencies


class Clock:
    """A clock that only the agents move."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Agent:
    """Takes as long as it is told to observe and to act; the first replies take longer."""

    def __init__(self, name, clock, asked, observing, acting):
        self.name, self.clock, self.asked, self.times = name, clock, asked, (observing, acting)
        self.said = 0

    def reset(self):
        self.clock.now += 50.0  # what lies between two messages is not waited for

    def observe(self, message):
        assert message["episode_done"] and "labels" not in message
        self.asked.append((self.name, message["text"]))
        self.clock.now += self.times[0]

    def act(self):
        self.said += 1
        self.clock.now += self.times[1] + (9.0 if self.said <= WARM_UP else 0.0) + len(self.asked[-1][1])


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", made.perf_counter)
    return made


def test_observing_and_replying_are_timed_and_loading_is_not(clock):
    asked = []
    agents = {"plain": Agent("plain", clock, asked, 1.0, 2.0), "guard": Agent("guard", clock, asked, 3.0, 4.0)}
    contexts = [["a"], ["b", "c"], ["d"], ["e"], ["f"]]
    found = latencies(agents, contexts, seed=1)
    assert found["plain"].milliseconds == pytest.approx(4000) and found["plain"].ratio == 1
    assert found["guard"].milliseconds == pytest.approx(8000) and found["guard"].ratio == pytest.approx(2.0)


def test_systems_answer_each_context_in_turn_and_none_is_always_first(clock):
    asked = []
    agents = {name: Agent(name, clock, asked, 1.0, 1.0) for name in "xyz"}
    latencies(agents, [["1"], ["2"], ["3"], ["4"]], seed=1)
    timed = asked[3 * WARM_UP :]
    assert [text for _, text in timed] == ["1"] * 3 + ["2"] * 3 + ["3"] * 3 + ["4"] * 3
    assert [name for name, _ in timed[::3]] == ["x", "y", "z", "x"]
