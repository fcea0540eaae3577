"""The guard: nothing that a judge refuses or cannot score gets through, whatever agent and judges do."""

from __future__ import annotations

import json
import math
import sys
import threading
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parlai.core.agents import Agent
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.core.worlds import create_task
from parlai.scripts.display_model import DisplayModel
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.interactive import Interactive
from parlai.scripts.self_chat import SelfChat
from parlai.scripts.train_model import TrainModel, set_seed
from parlai.utils import logging

from parlai_safety.agents.guard import guard as guard_module
from parlai_safety.agents.guard.checks import Checks, Finding, Turn, first
from parlai_safety.agents.guard.guard import GuardAgent, Shared
from parlai_safety.corpus.canned import canned_kind, canned_reply, load_canned
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.generate import agent_from, load_agent, losses, replies
from parlai_safety.judges.spec import Entry
from parlai_safety.judges.topics import Topic
from parlai_safety.judges.verdict import Verdict, unscored
from parlai_safety.scripts.safety_eval import SafetyEval
from tests.agents.small import write_talk
from tests.conftest import TINY_MODEL

RAISES, HANGS, BARE = "raises", "hangs", "bare"


class FakeJudge:
    """A judge that answers what it is told for each text, raises, hangs, or gives what is no verdict."""

    spec, threshold, fingerprint = "fake", 0.5, "0" * 64

    def __init__(self, verdicts=None, *, otherwise=0.0, cut=False, hang=0.2, spec="fake"):
        self.verdicts, self.otherwise, self.cut, self.hang, self.spec = verdicts or {}, otherwise, cut, hang, spec
        self.asked = []

    def score(self, replies, contexts, speakers):
        self.asked += list(zip(replies, map(tuple, contexts), speakers, strict=True))
        values = [self.verdicts.get(reply, self.otherwise) for reply in replies]
        if HANGS in values:
            time.sleep(self.hang)
        for reply, value in zip(replies, values, strict=True):
            if value == RAISES:
                raise ValueError(f"cannot read {reply!r}")
        found = [
            unscored(f"no idea of {reply}")
            if value is None
            else 0.1
            if value == BARE
            else Verdict(0.0 if value == HANGS else value)
            for reply, value in zip(replies, values, strict=True)
        ]
        return found[1:] if self.cut else found


class FakeTopics(FakeJudge):
    def topics(self, replies, contexts):
        return [Topic(f"about {self.verdicts[reply]}", 0.9) for reply in replies]


class Talker(Agent):
    """An agent whose acts are looked up by the user's last line; it has a history of its own, and `batch_act`."""

    acts = {}
    how = "beam_texts"

    def __init__(self, opt, shared=None):
        super().__init__(opt, shared)
        self.id = "Talker"
        self.history = []

    def observe(self, observation):
        self.history.append(observation.get("text"))
        observation["heard"] = True
        return super().observe(observation)

    def batch_act(self, observations):
        return [self.reply(observation) for observation in observations]

    def reply(self, observation):
        candidates = self.acts.get(observation.get("text"), [])
        act = Message({"id": self.id, "episode_done": False, "size": len(candidates)})
        if candidates:
            act["text"] = candidates[0]
            others = [(text, -1.0) for text in candidates] if self.how == "beam_texts" else candidates
            act[self.how] = others
        return act

    def self_observe(self, message):
        self.history.append(message["text"])


class Actor(Agent):
    """The same without `batch_act`: each copy answers what it has observed itself."""

    acts, how = {}, "text_candidates"

    def __init__(self, opt, shared=None):
        super().__init__(opt, shared)
        self.id, self.history = "Actor", []

    def act(self):
        return Talker.reply(self, self.observation)


def guarded(base, judge, topics=None, *, seconds=0.0, **options):
    """A guard around an agent and judges that are made already."""

    class Guard(GuardAgent):
        def load_base(self):
            return base

        def load_resources(self):
            tell = self.settings.guard_keep_withheld
            return Shared(Checks(judge, topics, seconds=seconds, tell=tell))

    return Guard(Opt(options))


def converse(agent, texts):
    """One turn of several conversations as a batch; the acts and the copies."""
    copies = [agent.clone() for _ in texts]
    observed = [
        copy.observe(Message({"text": text, "episode_done": False})) for copy, text in zip(copies, texts, strict=True)
    ]
    acts = agent.batch_act(observed)
    for copy, act in zip(copies, acts, strict=True):
        copy.self_observe(act)
    return acts, copies


def talker(acts, how="beam_texts"):
    kind = type("SomeTalker", (Talker,), {"acts": acts, "how": how})
    return kind(Opt({}))


VERDICTS = st.one_of(
    st.sampled_from([0.0, 0.25, math.nextafter(0.5, 0), 0.5, 0.75, 1.0]),
    st.sampled_from([None, math.nan, -0.5, 1.5, math.inf, RAISES, BARE]),
)
MOSTLY_SAFE = st.one_of(st.just(0.25), VERDICTS)


@st.composite
def situations(draw):
    """A batch: user turns with candidates, and what each judge says of each text. All texts differ."""
    rows = []
    for number in range(draw(st.integers(1, 4))):
        user = f"user{number}x"
        count = draw(st.integers(0, 4))
        candidates = [draw(st.sampled_from([f"reply{number}x{i}x"] * 9 + ["", "  "])) for i in range(count)]
        rows.append((user, candidates))
    texts = [text for user, candidates in rows for text in (user, *candidates)]
    judged = {text: draw(MOSTLY_SAFE) for text in texts}
    topics = {text: draw(MOSTLY_SAFE) for text in texts} if draw(st.booleans()) else None
    return rows, judged, topics


def is_safe(value):
    return isinstance(value, float) and 0 <= value < 0.5


def expected_side(side, text, judged, topics, whole):
    """(trigger or None) of one turn, by the rules alone."""
    if not text.strip() or whole:
        return "unscored"
    found = []
    for suffix, table in (("", judged), ("_topic", topics)):
        if table is None:
            continue
        value = table[text]
        if isinstance(value, float) and 0.5 <= value <= 1:
            found.append(f"{side}{suffix}")
        elif not is_safe(value):
            found.append("unscored")
    return found and min(found, key=["user", "user_topic", "reply", "reply_topic", "unscored"].index) or None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    situation=situations(),
    most=st.integers(0, 4),
    checks=st.sampled_from(["both", "both", "user", "reply"]),
    kind=st.sampled_from([Talker, Actor]),
    how=st.sampled_from(["beam_texts", "text_candidates"]),
    cut=st.sampled_from([False] * 5 + [True]),
    reply=st.sampled_from(["safe", "nonsequitur", "recovery"]),
)
def test_nothing_refused_gets_through_and_all_else_does(
    situation, most, checks, kind, how, cut, reply, tmp_path, monkeypatch
):
    rows, judged, topics = situation
    table = {user: candidates for user, candidates in rows}
    base = type("Some", (kind,), {"acts": table, "how": how})(Opt({}))
    warned = []
    monkeypatch.setattr(logging, "warning", warned.append)
    log = tmp_path / "log.jsonl"
    log.write_text("")
    # A bare number as a verdict is a mistake in the judge, and makes all of its call unscored.
    whole_call = cut or BARE in {*judged.values(), *(topics or {}).values()}
    agent = guarded(
        base,
        FakeJudge(judged, cut=cut),
        None if topics is None else FakeTopics(topics, spec="topics"),
        guard_candidates=most,
        guard_checks=checks,
        guard_reply=reply,
        guard_log=str(log),
    )
    acts, copies = converse(agent, [user for user, _ in rows])
    for (user, candidates), act, copy in zip(rows, acts, copies, strict=True):
        everything = f"{act}{copy.base.history}{log.read_text()}{warned}"
        if not candidates:
            assert "text" not in act and "guard" not in act
            continue
        if checks != "user":
            refused = [
                text for text in candidates if text.strip() and expected_side("reply", text, judged, topics, cut)
            ]
            assert not any(text in everything for text in refused)
        assert "beam_texts" not in act and "text_candidates" not in act
        assert act["text"] in everything and act["id"] == "Guard"
        if whole_call:
            # Which texts share a call with the mistake is not the matter here: nothing but a safe reply is said.
            assert canned_kind(act["text"]) == reply or is_safe(judged.get(act["text"])) or checks == "user"
            continue
        of_user = None if checks == "reply" else expected_side("user", user, judged, topics, False)
        of_reply = None if checks == "user" else expected_side("reply", candidates[0], judged, topics, False)
        order = ["user", "user_topic", "reply", "reply_topic", "unscored"]
        trigger = min(filter(None, [of_user, of_reply]), key=order.index, default=None)
        assert act["guard"]["trigger"] == trigger
        if trigger is None:
            assert act["text"] == candidates[0] and act["guard"]["replaced"] is False and act["size"] == len(candidates)
            continue
        safe = [
            text
            for text in list(dict.fromkeys(candidates))[1 : max(most, 1)]
            if checks != "user" and expected_side("reply", text, judged, topics, False) is None
        ]
        assert act["guard"]["replaced"] is True and "size" not in act
        tried = list(dict.fromkeys(candidates))[: max(most, 1)] if of_user is None else candidates[:1]
        assert act["guard"]["candidates"] == len(tried)
        if of_user is None and safe:
            assert act["text"] == safe[0]
        else:
            assert canned_kind(act["text"]) == reply
        fired = act["guard"]["p_unsafe"]
        assert (fired is None) == (trigger == "unscored") and (fired is None or fired >= 0.5)
        assert act["guard"]["judge"] == ("topics" if trigger.endswith("_topic") else act["guard"]["judge"])
        assert (act["guard"]["topic"] is not None) == trigger.endswith("_topic")
        assert {name: value.value() for name, value in act["metrics"].items()} == {
            "guard_fired": 1.0,
            "guard_user": float(trigger == "user"),
            "guard_reply": float(trigger == "reply"),
            "guard_topic": float(trigger.endswith("_topic")),
            "guard_unscored": float(trigger == "unscored"),
            "guard_replaced": 1.0,
        }


@settings(max_examples=6, deadline=None)
@given(st.permutations(["quick", "slow", "unsafe"]), st.booleans())
def test_a_judge_that_hangs_lets_nothing_through(order, user_hangs):
    verdicts = {"slow": HANGS, "unsafe": 0.9, "hello slow": HANGS if user_hangs else 0.0}
    base = talker({f"hello {name}": [name] for name in order})
    acts, _ = converse(guarded(base, FakeJudge(verdicts, hang=0.1), seconds=0.02), [f"hello {name}" for name in order])
    for name, act in zip(order, acts, strict=True):
        trigger = {"quick": None, "slow": "unscored", "unsafe": "reply"}[name]
        assert act["guard"]["trigger"] == trigger
        assert (act["text"] == name) == (trigger is None)


def test_reply_and_user_are_judged_in_their_contexts_by_who_says_them():
    judge = FakeJudge()
    agent = guarded(talker({"one": ["two"], "a\nb\nthree": ["four"]}), judge)
    agent.observe({"text": "one", "episode_done": False})
    agent.act()
    agent.observe({"text": "a\nb\nthree", "episode_done": False})
    agent.act()
    assert judge.asked == [
        ("two", ("one",), "bot"),
        ("one", (), "human"),
        ("four", ("one", "two", "a", "b", "three"), "bot"),
        ("three", ("one", "two", "a", "b"), "human"),
    ]
    assert agent.base.history == ["one", "two", "a\nb\nthree", "four"]


def test_the_history_holds_what_was_said_and_the_users_turn_stays():
    agent = guarded(talker({"rude": ["bad"], "again": ["fine"]}), FakeJudge({"bad": 0.9, "rude": 0.9}))
    agent.observe({"text": "rude", "episode_done": False})
    said = agent.act()["text"]
    agent.observe({"text": "again", "episode_done": True})
    judge = agent.resources.checks.judges[""]
    assert agent.act()["text"] == "fine"
    assert agent.base.history == ["rude", said, "again", "fine"]
    assert judge.asked[-2] == ("fine", ("rude", said, "again"), "bot")
    agent.observe({"text": "again", "episode_done": False})
    agent.act()
    assert judge.asked[-2] == ("fine", ("again",), "bot")


def test_a_label_is_remembered_in_the_replys_place_and_never_looked_at():
    judge = FakeJudge({"bad": 0.9, "gold": 0.9})
    base = talker({"one": ["bad"], "two": ["fine"]})
    agent = guarded(base, judge)
    texts = []
    for labels in (["gold"], ["other"]):
        agent.reset()
        agent.observe({"text": "one", "eval_labels": labels, "episode_done": False})
        texts.append(agent.act()["text"])
        agent.observe({"text": "two", "episode_done": False})
        agent.act()
        assert judge.asked[-2] == ("fine", ("one", labels[0], "two"), "bot")
        assert "gold" not in [text for text, _, _ in judge.asked]
    assert texts[0] == texts[1]
    base.opt["use_reply"] = "model"
    agent.reset()
    agent.observe({"text": "one", "eval_labels": ["gold"], "episode_done": False})
    said = agent.act()["text"]
    agent.observe({"text": "two", "episode_done": False})
    agent.act()
    assert judge.asked[-2] == ("fine", ("one", said, "two"), "bot")


def test_a_canned_reply_is_drawn_by_the_conversation_and_comes_once():
    agent = guarded(talker({"same": ["bad"]}), FakeJudge({"bad": 1.0}))
    said, context = [], []
    for _ in range(48):
        agent.observe({"text": "same", "episode_done": False})
        context.append("same")
        said.append(agent.act()["text"])
        assert said[-1] == canned_reply("safe", context, avoid=said[:-1])
        context.append(said[-1])
    assert len(set(said)) == len(said)
    other = guarded(talker({"same": ["bad"]}), FakeJudge({"bad": 1.0}), guard_seed=1)
    other.observe({"text": "same", "episode_done": False})
    assert other.act()["text"] == canned_reply("safe", ["same"], seed=1) != said[0]


def test_what_it_said_is_not_repeated_where_labels_stand_in_the_history():
    agent = guarded(talker({"same": ["bad"]}), FakeJudge({"bad": 1.0}))
    said = []
    for _ in range(40):
        message = Message({"text": "same", "eval_labels": ["gold"], "episode_done": False})
        agent.observe(message)
        assert set(message) == {"text", "eval_labels", "episode_done"}  # the other side's act is left as it was
        said.append(agent.act()["text"])
    assert len(set(said)) == len(said)


def test_what_the_context_holds_is_not_repeated_either():
    *others, left = load_canned().replies["safe"]
    context = "\n".join([*others, "one"])
    ((act,), _) = converse(guarded(talker({context: ["bad"]}), FakeJudge({"bad": 0.9})), [context])
    assert act["text"] == left


def test_what_is_withheld_is_shown_on_demand_alone(tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr(logging, "warning", warned.append)
    for keep in (False, True):
        log = tmp_path / f"{keep}.jsonl"
        base = talker({"one": ["bad"], "two": ["odd"]})
        judge = FakeJudge({"bad": 0.75, "odd": None})
        agent = guarded(base, judge, guard_keep_withheld=keep, guard_log=str(log))
        (bad, odd), _ = converse(agent, ["one", "two"])
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        assert [row["said"] for row in rows] == [bad["text"], odd["text"]] and rows[0]["turn"] == 1
        assert len({row["conversation"] for row in rows}) == 2
        assert [row.get("withheld") for row in rows] == (["bad", "odd"] if keep else [None, None])
        record = {"trigger": "reply", "judge": "fake", "p_unsafe": 0.75, "topic": None, "replaced": True}
        assert bad["guard"] == {**record, "candidates": 1} | ({"withheld": "bad"} if keep else {})
        assert odd["guard"]["trigger"] == "unscored"
        assert ("no idea of odd" in warned[-1]) == keep
    assert len(warned) == 2 and all("'fake' gave a text no score" in line for line in warned)


def test_a_failing_judge_is_told_once_a_kind(monkeypatch):
    warned = []
    monkeypatch.setattr(logging, "warning", warned.append)
    agent = guarded(talker({"one": ["a"]}), FakeJudge(cut=True))
    for _ in range(3):
        converse(agent, ["one", "one"])
    assert len(warned) == 1 and "failed with a SafetyError" in warned[0]


def test_a_topic_that_cannot_be_named_still_fires():
    class Nameless(FakeJudge):
        def topics(self, replies, contexts):
            raise RuntimeError("no name")

    agent = guarded(talker({"one": ["drugs"]}), FakeJudge(), Nameless({"drugs": 0.5}))
    ((act,), _) = converse(agent, ["one"])
    assert act["guard"]["trigger"] == "reply_topic" and act["guard"]["topic"] is None
    assert first([Finding(None, "a", 0.1), Finding("unscored", "b", None), Finding("reply", "c", 0.9)]).judge == "c"
    assert Checks(FakeJudge()).find([Turn("reply", "x", [])]) == [Finding(None, "fake", 0.0)]


def test_an_observation_that_went_through_no_copy_is_judged_too():
    agent = guarded(talker({"one": ["bad"]}), FakeJudge({"bad": 0.9}))
    (act,) = agent.batch_act([Message({"text": "one"})])
    assert act["guard"]["trigger"] == "reply" and canned_kind(act["text"]) == "safe"


def test_a_reply_that_is_no_text_is_judged_as_what_would_be_shown():
    for verdict, said in ((0.0, "42"), (0.9, None)):
        ((act,), _) = converse(guarded(talker({"one": [42]}), FakeJudge({"42": verdict})), ["one"])
        assert act["guard"]["replaced"] == (said is None)
        assert act["text"] == said or canned_kind(act["text"]) == "safe"


def test_each_judge_has_its_own_threshold():
    judge = FakeJudge({"mild": math.nextafter(0.8, 0), "bad": 0.8})
    judge.threshold = 0.8
    acts, _ = converse(guarded(talker({"one": ["mild"], "two": ["bad"]}), judge), ["one", "two"])
    assert [act["guard"]["trigger"] for act in acts] == [None, "reply"]


def test_an_answer_that_comes_late_is_nobodys():
    gate = threading.Event()

    class Late(FakeJudge):
        """It finds the first reply safe when it is asked for the second one, which it finds unsafe."""

        def score(self, replies, contexts, speakers):
            if "slow" in replies:
                gate.wait(5)
                return [Verdict(0.0)] * len(replies)
            gate.set() if "bad" in replies else None
            return [Verdict(0.9 if reply == "bad" else 0.0) for reply in replies]

    agent = guarded(talker({"one": ["slow"], "two": ["bad"]}), Late(), seconds=0.1)
    for text in ("one", "two", "two"):
        agent.observe({"text": text, "episode_done": False})
        assert canned_kind(agent.act()["text"]) == "safe"
    assert gate.is_set() and {"slow", "bad"}.isdisjoint(agent.base.history)


def test_a_topic_whose_name_does_not_come_is_not_waited_for():
    gate, named = threading.Event(), []

    class Slow(FakeJudge):
        def topics(self, replies, contexts):
            gate.wait(5)
            named.append(replies)
            return [Topic("late", 0.9)]

    agent = guarded(talker({"one": ["odd"]}), FakeJudge(), Slow({"odd": 0.5}), seconds=0.1)
    ((act,), _) = converse(agent, ["one"])
    assert not named and act["guard"]["trigger"] in ("reply_topic", "unscored") and act["guard"]["topic"] is None
    gate.set()


def test_what_an_observation_was_is_not_changed_by_later_turns():
    judge = FakeJudge({"bad": 0.9})
    agent = guarded(talker({"one": ["bad"], "two": ["fine"]}), judge)
    earlier = agent.observe({"text": "one", "episode_done": False})
    said = agent.act()["text"]
    agent.observe({"text": "two", "episode_done": False})
    agent.act()
    (again,) = agent.batch_act([earlier])
    assert again["text"] == said and judge.asked[-2:] == [("bad", ("one",), "bot"), ("one", (), "human")]


def test_it_learns_nothing_and_answers_no_padding():
    agent = guarded(talker({"one": ["fine"]}), FakeJudge())
    with pytest.raises(SafetyError, match="It guards a model that is trained already"):
        agent.observe({"text": "one", "labels": ["fine"], "episode_done": True})
    padding = agent.observe({"text": "one", "batch_padding": True, "episode_done": True})
    assert "text" not in agent.batch_act([padding])[0]


def test_metrics_of_the_agent_inside_stay_beside_the_guards_own():
    class Counting(Talker):
        acts = {"one": ["fine"], "two": ["bad"]}

        def reply(self, observation):
            act = super().reply(observation)
            return Message({**act, "metrics": {"steps": 7}, "reward": 3, "note": act.get("text", "")})

    acts, _ = converse(guarded(Counting(Opt({})), FakeJudge({"bad": 0.9})), ["one", "two"])
    assert [act["metrics"]["steps"] for act in acts] == [7, 7]
    assert [act["metrics"]["guard_fired"].value() for act in acts] == [0.0, 1.0]
    assert acts[0]["note"] == "fine" and {"note", "reward"}.isdisjoint(acts[1])


def test_an_act_without_a_reply_has_no_candidates_either():
    class Silent(Talker):
        def reply(self, observation):
            return Message({"id": self.id, "text_candidates": ["bad"], "beam_texts": [("bad", 0.0)], "error": "no"})

    ((act,), _) = converse(guarded(Silent(Opt({})), FakeJudge({"bad": 0.9})), ["one"])
    assert act == {"id": "Guard", "error": "no"}


def test_a_reset_forgets_the_conversation_here_and_inside():
    class Forgetful(Talker):
        acts = {"one": ["fine"]}

        def reset(self):
            super().reset()
            self.history = []

    judge = FakeJudge()
    agent = guarded(Forgetful(Opt({})), judge)
    for _ in range(2):
        agent.observe({"text": "one", "episode_done": False})
        agent.act()
        assert agent.base.history == ["one", "fine"] and judge.asked[-2:] == [
            ("fine", ("one",), "bot"), ("one", (), "human")
        ]  # fmt: skip
        agent.reset()


# --- with agents and commands of ParlAI ------------------------------------------------------------------------------

HELLO, RUDE = "Hello there.", "You dim lamp."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A generator that has hardly learned to write."""
    folder = tmp_path_factory.mktemp("base")
    set_seed(3)
    TrainModel.main(
        model="transformer/generator", task="safety:file", safety_file=str(write_talk(folder / "talk.jsonl")),
        model_file=str(folder / "model"), batchsize=4, max_train_steps=1, log_every_n_steps=1, skip_generation=True,
        loglevel="error", **TINY_MODEL,
    )  # fmt: skip
    return str(folder / "model")


@pytest.fixture
def judge(tmp_path):
    """Unsafe is what holds "dim"."""
    path = tmp_path / "words.txt"
    path.write_text("dim\n")
    return f"wordlist:{path}"


@pytest.fixture
def task(tmp_path):
    """Three contexts, one of them rude, for `repeat_query` to repeat."""
    rows = [{"context": [context], "reply": "Hello there."} for context in (HELLO, RUDE, "Good day.")]
    return {"task": "safety:file", "safety_file": str(write_talk(tmp_path / "t.jsonl", rows)), "loglevel": "error"}


def made(**options):
    options = {"model": "safety:guard", "loglevel": "error", **options}
    return agent_from(Opt({**options, "override": dict(options)}))


def test_a_guard_whose_judge_is_content_is_the_guarded_agent(base, judge):
    contexts = [[HELLO], ["What do you like?"], [HELLO, "Fine.", "And you?"]]
    for inference in ({"inference": "beam", "beam_size": 3}, {"inference": "nucleus", "topp": 0.9}):
        plain = load_agent(base, loglevel="error", **inference)
        guard = made(guarded_model=base, guard_judge=judge, **inference)
        guard.resources.checks = Checks(FakeJudge())
        said = [[one.text for one in replies(agent, contexts, seed=5)] for agent in (plain, guard)]
        assert said[0] == said[1] and said[0][0]
        assert list(losses(guard, contexts, ["a"] * 3)) == list(losses(plain, contexts, ["a"] * 3))
    assert guard.opt["model"] == "parlai_safety.agents.guard.guard:GuardAgent"
    assert not hasattr(guard, "load") and hasattr(guard.base, "load")  # what it lacks, ParlAI does not warn of
    assert "guard_judge" not in guard.base.opt and guard.base.opt["topp"] == 0.9


def test_the_next_best_reply_of_a_generator_is_said_and_remembered(base, judge):
    hot = {"inference": "topk", "topk": 20, "temperature": 9.0}  # an untrained model says one thing again and again
    agent = made(guarded_model=base, guard_judge=judge, guard_candidates=3, **hot)
    assert agent.base.beam_size == 3
    plain = load_agent(base, loglevel="error", beam_size=3, **hot)
    plain.observe({"text": HELLO, "episode_done": False})
    torch.manual_seed(5)
    texts = [text for text, _ in plain.act()["beam_texts"]]
    assert len(set(texts)) == 3
    agent.resources.checks = Checks(FakeJudge({texts[0]: 0.9, texts[1]: None}))
    agent.observe({"text": HELLO, "episode_done": False})
    torch.manual_seed(5)
    act = agent.act()
    assert act["text"] == texts[2] and act["guard"]["candidates"] == 3 and act["guard"]["trigger"] == "reply"
    assert agent.history.history_raw_strings == [HELLO, texts[2]]
    assert not any(text in str(act) for text in texts[:2])


def test_guided_agents_and_rankers_are_guarded_too(base, judge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a ranker without a model file saves its candidates in the folder where it is
    agent = made(
        guarded_model="safety:rerank", base_model=base, guidance_judge=judge, rerank_candidates=3,
        inference="beam", guard_judge=judge, guard_candidates=2,
    )  # fmt: skip
    agent.observe({"text": HELLO, "episode_done": False})
    agent.resources.checks = Checks(FakeJudge(otherwise=0.9))
    assert canned_kind(agent.act()["text"]) == "safe"
    ranks = tmp_path / "candidates.txt"
    ranks.write_text("I like trains.\nYou are a dim lamp.\nGood day.\n")
    sizes = {name: value for name, value in TINY_MODEL.items() if name != "label_truncate"}
    parser = EvalModel.setup_args()
    opt = parser.parse_kwargs(
        task="safety:file", model="safety:guard", guarded_model="transformer/biencoder", judge=judge,
        dict_file=f"{base}.dict", eval_candidates="fixed", fixed_candidates_path=str(ranks),
        encode_candidate_vecs=False, guard_candidates=3, loglevel="error", **sizes,
    )  # fmt: skip
    assert opt["guard_judge"] == judge and opt["override"]["guard_judge"] == judge
    ranker = agent_from(opt)
    ranker.observe({"text": HELLO, "episode_done": False})
    best = ranker.base.batch_act([ranker.observation])[0]["text_candidates"]
    assert len(best) == 3
    ranker.resources.checks = Checks(FakeJudge({best[0]: 0.9, best[1]: 0.9}))
    act = ranker.act()
    assert act["text"] == best[2] and "text_candidates" not in act and best[0] not in str(act)


def test_parlais_commands_take_it_and_report_rates(task, judge, tmp_path):
    common = {"model": "safety:guard", "guarded_model": "repeat_query", "judge": judge, **task}
    logs, own = tmp_path / "world.jsonl", tmp_path / "guard.jsonl"
    report = EvalModel.main(
        batchsize=2, datatype="valid", world_logs=str(logs), guard_log=str(own), guard_judge_timeout=0, **common
    )
    rates = {name: float(report[f"guard_{name}"]) for name in ("fired", "user", "reply", "topic", "replaced")}
    assert rates == {"fired": 1 / 3, "user": 1 / 3, "reply": 0.0, "topic": 0.0, "replaced": 1 / 3}
    assert float(report["guard_unscored"]) == 0.0 and float(report["exs"]) == 3 and float(report["f1"]) > 0.3
    saved = [json.loads(line)["dialog"][0] for line in logs.read_text().splitlines()]
    triggers = {pair[0]["text"]: pair[1]["guard"]["trigger"] for pair in saved}
    assert triggers == {HELLO: None, RUDE: "user", "Good day.": None}
    assert sorted(json.loads(line)["trigger"] or "" for line in own.read_text().splitlines()) == ["", "", "user"]
    DisplayModel.main(num_examples=3, **common)
    only_replies = EvalModel.main(batchsize=1, datatype="valid", guard_checks="reply", **common)
    assert float(only_replies["guard_reply"]) == pytest.approx(1 / 3)


def test_it_talks_to_a_person_and_to_itself(judge, tmp_path, monkeypatch, capsys):
    turns = iter(["Hello you.", RUDE, "[EXIT]"])
    monkeypatch.setattr("builtins.input", lambda *_: next(turns))
    talk = tmp_path / "talk.jsonl"
    more = {"model": "safety:guard", "judge": judge, "loglevel": "error"}
    Interactive.main(guarded_model="repeat_query", outfile=str(talk), guard_reply="recovery", **more)
    shown = capsys.readouterr().out
    (dialogue,) = [json.loads(line)["dialog"] for line in talk.read_text().splitlines()]
    assert [pair[1]["guard"]["trigger"] for pair in dialogue] == [None, "user"]
    assert "Hello you." in shown and dialogue[1][1]["text"] in shown
    assert canned_kind(dialogue[1][1]["text"]) == "recovery"
    SelfChat.main(
        guarded_model="fixed_response", fixed_response="A dim lamp.", num_self_chats=1, selfchat_max_turns=3,
        outfile=str(talk), **more,
    )  # fmt: skip
    said = [act for pair in json.loads(talk.read_text())["dialog"] for act in pair if act["id"] != "context"]
    assert {act["guard"]["trigger"] for act in said} == {"reply"} and "lamp" not in talk.read_text()
    assert len({act["text"] for act in said}) == len(said) == 4


def test_two_guarded_models_talk_to_each_other(judge, base):
    agents = [
        made(guarded_model="repeat_query", guard_judge=judge, interactive_mode=True),
        made(guarded_model=base, guard_judge=judge, inference="beam", beam_size=2, interactive_mode=True),
    ]
    world = create_task(
        Opt({**agents[0].opt, "task": "self_chat", "selfchat_task": True, "batchsize": 1, "selfchat_max_turns": 3}),
        agents,
    )
    for _ in range(3):
        world.parley()
    first_said, second_said = (act["text"] for act in world.get_acts())
    assert agents[1].history.history_raw_strings[-2:] == [first_said, second_said]


def test_a_commands_own_judge_stays_its_own(monkeypatch, base):
    opt = SafetyEval.setup_args().parse_kwargs(
        model="safety:guard", guarded_model=base, judge="wordlist", guard_judge="linear:own.npz", out="unused"
    )
    assert opt["judge"] == "wordlist" and opt["guard_judge"] == "linear:own.npz"
    typed = ["eval_model", "-t", "safety:file", "-m", "safety:guard", "--judge", "wordlist"]
    for words in (["--guarded-model", "fixed_response"], ["--guarded-model=fixed_response"]):
        monkeypatch.setattr(sys, "argv", ["parlai", *typed, *words, "--fixed-response", "Hm."])
        opt, unknown = _parsed(EvalModel.setup_args(), sys.argv[1:])
        assert opt["fixed_response"] == "Hm." and opt["guard_judge"] == "wordlist" and "--fixed-response" not in unknown


def _parsed(parser, words):
    """As ParlAI's command line has it: flags are found first, then all words are parsed."""
    parser.add_extra_args(words)
    return parser.parse_and_process_known_args(words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guard_judge": "wordlist"}, "The command came without --guarded-model"),
        ({"guarded_model": "repeat_query"}, "safety:guard came without --guard-judge"),
        ({"guarded_model": "no_such_agent", "guard_judge": "wordlist"}, "--guarded-model got 'no_such_agent'"),
        ({"guarded_model": "safety:guard", "guard_judge": "wordlist"}, "--guarded-model got 'safety:guard'"),
        ({"guarded_model": "repeat_query", "guard_judge": "wordlist:no/file"}, "no/file"),
        ({"guarded_model": "repeat_query", "guard_judge": "broken"}, "judge 'broken' cannot be loaded .ValueError"),
        ({"guarded_model": "repeat_query", "guard_judge": "wordlist", "guard_reply": "rude"}, "--guard-reply got"),
    ],
)
def test_what_cannot_be_guarded_is_told(options, message, monkeypatch):
    entry = Entry("tests.agents.test_guard:broken", "none", "broken", "a judge that cannot be loaded")
    monkeypatch.setitem(guard_module.load_judge.__globals__["REGISTRY"], "broken", entry)
    monkeypatch.setitem(sys.modules, "tests.agents.test_guard", sys.modules[__name__])
    with pytest.raises(SafetyError, match=message):
        made(**options)


def broken(argument, threshold, datapath):
    raise ValueError("no such bytes")


def test_candidates_need_a_search_that_has_some(base):
    with pytest.raises(SafetyError, match=r"decodes by greedy.*Add --inference beam"):
        made(guarded_model=base, guard_judge="wordlist", guard_candidates=2)


def test_it_cannot_be_trained(task, tmp_path):
    common = {"model": "safety:guard", "guarded_model": "repeat_query", "judge": "wordlist", **task}
    for own in ({"model_file": str(tmp_path / "own")}, {"dict_file": str(tmp_path / "own.dict")}):
        with pytest.raises(SafetyError, match="It guards a model that is trained already.*--guarded-model"):
            TrainModel.main(**own, **common)
