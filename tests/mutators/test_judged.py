"""Mutators that ask a judge: whose turn, in which context, by which threshold; and ParlAI's loops around them."""

from __future__ import annotations

import json
import sys

import pytest
from parlai.core.message import Message
from parlai.core.mutators import Mutator
from parlai.core.opt import Opt
from parlai.core.teachers import create_task_agent_from_taskname
from parlai.scripts.display_data import setup_args

from parlai_safety.errors import SafetyError
from parlai_safety.mutators import filters, judged, thinning
from parlai_safety.mutators.judged import JudgedMutator, alone, with_history
from tests.agents.small import run
from tests.conftest import TINY_MODEL
from tests.mutators.judged_stub import WordJudge


class Probe(JudgedMutator):
    def many_episode_mutation(self, episode):
        raise NotImplementedError


@pytest.fixture
def judge(monkeypatch):
    stub = WordJudge()
    monkeypatch.setattr(judged, "load_judge", lambda spec, **_: stub)
    judged._loaded.cache_clear()
    yield stub
    judged._loaded.cache_clear()
    filters._counts.clear()


def probe(**options):
    return Probe(Opt(options))


def scored(**fields):
    return {"text": "Hi", "labels": ["Hello."], **fields}


BY = {"provenance": {"toxicity": {"judge": "linear:a", "fingerprint": "0" * 64, "threshold": 0.4}}}


@pytest.mark.parametrize(
    ("speaker", "asked"),
    [({}, ("bot", "human")), ({"speaker": "bot"}, ("bot", "human")), ({"speaker": "human"}, ("human", "bot"))],
)
def test_the_label_is_its_speakers_and_the_turn_before_it_the_others(judge, speaker, asked):
    message = {"text": "a\nb\nc", "labels": ["d"], **speaker}
    one = probe(mutator_judge="wordlist")
    assert one.label_unsafe(message, ["z"]) is False and one.context_unsafe(message, ["z"]) is False
    assert judge.asked == [("d", ("z", "a", "b", "c"), asked[0]), ("c", ("z", "a", "b"), asked[1])]


def test_a_judge_has_three_answers_and_any_unsafe_label_counts(judge):
    one = probe(mutator_judge="wordlist")
    for labels, found in (
        (["kind"], False), (["rude"], True), (["odd"], None), (["kind", "odd"], None), (["odd", "rude"], True),
        ([], None),
    ):  # fmt: skip
        assert one.label_unsafe({"text": "a", "labels": labels}) is found
        assert one.label_unsafe({"text": "a", "eval_labels": labels}) is found
    for text, found in (("kind\nrude", True), ("rude\nkind", False), ("odd", None), ("__start__", False), ("", False)):
        assert one.context_unsafe({"text": text, "labels": ["x"]}) is found
    assert one.scored_by({}) == "words"


def test_the_judge_wins_over_a_stored_score(judge):
    assert probe(mutator_judge="wordlist").label_unsafe(scored(toxicity=0.99, **BY)) is False


def test_stored_scores_are_compared_with_their_own_threshold_or_the_given_one():
    one, strict = probe(), probe(mutator_threshold=0.3)
    for value, found, found_strictly in ((0.4, True, True), (0.39, False, True), (0.29, False, False)):
        for field, ask in (("toxicity", Probe.label_unsafe), ("context_toxicity", Probe.context_unsafe)):
            assert ask(one, scored(**{field: value}, **BY)) is found
            assert ask(strict, scored(**{field: value}, **BY)) is found_strictly
            assert ask(strict, scored(**{field: value})) is found_strictly
    assert one.label_unsafe(scored(**BY)) is None and one.context_unsafe(scored(**BY)) is None
    assert one.context_unsafe({"text": "__start__", "labels": ["x"]}) is False
    assert one.scored_by(scored(**BY)) == "linear:a"


def test_without_a_judge_and_a_score_or_a_threshold_nothing_is_known():
    with pytest.raises(SafetyError, match="no 'toxicity'.*--mutator-judge"):
        probe().label_unsafe(scored())
    with pytest.raises(SafetyError, match="no 'context_toxicity'.*safety_annotate"):
        probe().context_unsafe(scored(toxicity=0.2, provenance={"source": "x"}))
    with pytest.raises(SafetyError, match="no threshold.*--mutator-threshold"):
        probe().label_unsafe(scored(toxicity=0.2))
    for value in (float("nan"), None, "0.2", 7):  # no number that can be compared is below any threshold
        with pytest.raises(SafetyError, match=r"'toxicity' = .*float in \[0, 1\]"):
            probe().label_unsafe(scored(toxicity=value, **BY))
    with pytest.raises(SafetyError, match="a turn that has no score|A turn that has no score"):
        probe().turn_unsafe("a", [], "bot")


@pytest.mark.parametrize("message", [{"text": "a\nb", "labels": ["__ok__"]}, {"labels": ["pos"], "is_ltr": False}])
def test_the_name_of_a_class_is_not_judged(judge, message):
    with pytest.raises(SafetyError, match="the name of a class.*safety_reply"):
        probe(mutator_judge="wordlist").label_unsafe(message)


@pytest.mark.parametrize(
    "options", [{"mutator_judge": "wordlists"}, {"mutator_threshold": 0.0}, {"mutator_threshold": 1.5}]
)
def test_a_bad_option_is_told_at_the_start(options):
    with pytest.raises(SafetyError):
        probe(**options)


def test_earlier_messages_of_an_episode_are_context():
    episode = [Message({"text": t, "labels": [r, "no"]}) for t, r in (("p\na", "b"), ("c", "d"), ("__start__", "e"))]
    found = [(alone(message, before)["text"], before) for message, before in with_history(episode)]
    assert found == [
        ("p\na", []),
        ("p\na\nb\nc", ["p", "a", "b"]),
        ("p\na\nb\nc\nd", ["p", "a", "b", "c", "d"]),
    ]


def test_a_judge_is_loaded_once_for_all_mutators_and_once_a_threshold(monkeypatch):
    loads = []
    monkeypatch.setattr(
        judged, "load_judge", lambda spec, **more: loads.append((spec, more["threshold"])) or WordJudge()
    )
    judged._loaded.cache_clear()
    for _ in range(3):
        for name in ("safety_bake", "safety_filter_utterances"):
            (kind,) = Mutator.load_mutator_types(name)
            kind(Opt(mutator_judge="wordlist")).judge  # noqa: B018  loads it
    probe(mutator_judge="wordlist", mutator_threshold=0.7).judge  # noqa: B018
    judged._loaded.cache_clear()
    assert loads == [("wordlist", None), ("wordlist", 0.7)]


def test_a_cache_keeps_the_verdicts(judge, tmp_path):
    for _ in range(2):
        one = probe(mutator_judge="wordlist", mutator_judge_cache=str(tmp_path / "c.sqlite"))
        assert one.label_unsafe({"text": "a", "labels": ["rude"]}) is True
        judged._loaded.cache_clear()
    assert len(judge.asked) == 1


def teacher(path, mutators, datatype="valid", **options):
    options = {"safety_file": str(path), "mutator_judge": "wordlist", **options}
    opt = setup_args().parse_kwargs(task="safety:file", datatype=datatype, mutators=mutators, **options)
    return create_task_agent_from_taskname(opt)[0]


def said(one):
    found = []
    while not one.epoch_done():
        found.append(one.act())
    return [(m.get("eval_labels") or m.get("labels"))[0] for m in found if not m.is_padding()]


def test_flags_stand_once_in_a_command_of_several_mutators_and_tasks(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"context": ["a"], "reply": "kind"}) + "\n")
    parser = setup_args()
    options = {"mutator_judge": "wordlist", "mutator_threshold": 0.6, "bake_seed": 4, "filter_context": True}
    opt = parser.parse_kwargs(
        task="safety:file,safety:tiny",
        mutators="safety_filter_utterances+safety_bake",
        safety_file=str(path),
        **options,
    )
    assert {name: opt[name] for name in options} == options
    named = [name for action in parser._actions for name in action.option_strings]
    assert len(named) == len(set(named)) and "--filter-report" in named and "--bake-target" in named


@pytest.fixture
def gap(tmp_path):
    """More rude replies in a row than Python allows calls within calls."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # Python's own
    path = tmp_path / "gap.jsonl"
    rows = [{"context": ["a"], "reply": "Fine, thanks."}] * 100
    rows += [{"context": ["a"], "reply": f"rude {n}"} for n in range(1300)]
    rows += [{"context": ["b"], "reply": "All is well."}] * 2 + [{"context": ["b"], "reply": "rude"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield path
    sys.setrecursionlimit(before)


def test_a_long_gap_ends_no_evaluation_and_no_stream(judge, gap):
    for datatype in ("valid", "train:ordered", "train:stream:ordered"):
        assert (
            said(teacher(gap, "safety_filter_utterances", datatype)) == ["Fine, thanks."] * 100 + ["All is well."] * 2
        )


def test_streamed_text_of_parlai_is_filtered_to_its_end(judge, tmp_path):
    path = tmp_path / "talk.txt"
    path.write_text("".join(f"text:Hi {n}.\tlabels:rude {n}\tepisode_done:True\n" for n in range(3))
                    + "text:Hi.\tlabels:Fine.\ntext:More.\tlabels:odd\ntext:Last.\tlabels:Well.\tepisode_done:True\n"
                    + "text:Hi.\tlabels:rude.\tepisode_done:True\n")  # fmt: skip
    kwargs = {"task": "fromfile:parlaiformat", "fromfile_datapath": str(path), "fromfile_datatype_extension": False}
    for datatype in ("valid", "valid:stream", "train:stream:ordered", "train:ordered"):
        opt = setup_args().parse_kwargs(
            datatype=datatype, mutators="safety_filter_utterances", mutator_judge="wordlist", **kwargs
        )
        one = create_task_agent_from_taskname(opt)[0]
        found = []
        while not one.epoch_done():
            found.append(one.act())
        kept = [(m["text"], (m.get("eval_labels") or m.get("labels"))[0]) for m in found if not m.is_padding()]
        assert kept == [("Hi.", "Fine."), ("Hi.\nFine.\nMore.\nodd\nLast.", "Well.")]
        assert all(m["episode_done"] for m in found)


@pytest.mark.parametrize(("datatype", "batching"), [("train", None), ("train:ordered", None)])
def test_a_training_goes_through_a_long_gap(judge, gap, tmp_path, datatype, batching):
    loop, reports = run(
        model="transformer/generator", task="safety:file", safety_file=str(gap), datatype=datatype,
        mutators="safety_filter_utterances", mutator_judge="wordlist", model_file=str(tmp_path / "model"), batchsize=2,
        dynamic_batching=batching, max_train_steps=2, log_every_n_steps=1, loglevel="error",
        optimizer="sgd", **TINY_MODEL,
    )  # fmt: skip
    assert reports and "exs" in reports[0]


def test_data_of_which_nothing_is_left_end_the_training(judge, gap, monkeypatch):
    monkeypatch.setattr(thinning, "_GIVEN_UP_AFTER", 500)
    with pytest.raises(SafetyError, match="left nothing of 500 episodes in a row"):
        said(teacher(gap, "safety_filter_utterances", "valid"))


def test_in_order_padding_stands_in_for_what_is_left_out_and_elsewhere_nothing(judge):
    (kind,) = Mutator.load_mutator_types("safety_filter_utterances")
    for datatype, gap in (("train:ordered", [None]), ("train", []), ("valid", [])):
        one = kind(Opt(mutator_judge="wordlist", datatype=datatype))
        left = [
            [m.get("labels") for m in one([Message({"text": "a", "labels": [label], "episode_done": True})])]
            for label in ("rude", "kind", "rude")
        ]
        assert left == [gap, [["kind"]], gap]


def test_the_gap_is_counted_from_the_last_episode_that_left_something(judge, monkeypatch):
    monkeypatch.setattr(thinning, "_GIVEN_UP_AFTER", 2)
    (kind,) = Mutator.load_mutator_types("safety_filter_utterances")
    one = kind(Opt(mutator_judge="wordlist"))
    for label in ("rude", "kind", "rude", "kind", "rude"):
        list(one([Message({"text": "a", "labels": [label], "episode_done": True})]))
    with pytest.raises(SafetyError, match="FilterUtterancesMutator left nothing of 2 episodes in a row"):
        list(one([Message({"text": "a", "labels": ["rude"], "episode_done": True})]))
