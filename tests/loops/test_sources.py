"""What is measured on was never learnt from: neither by the judges nor by the generator."""

from __future__ import annotations

from pathlib import Path

import pytest
from parlai.scripts.train_model import TrainModel

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.suites import distinct_contexts
from parlai_safety.judges.data import halves
from parlai_safety.judges.spec import load_judge
from parlai_safety.loops.sources import source_of


def check_no_leak(source) -> None:
    examples = source.judge_examples(seed=1)
    learnt = {tuple(example.context) for example in examples if example.unsafe or not example.source.startswith("ord")}
    trained = {tuple(context) for context in distinct_contexts(source.adversarial("train"))}
    tested = {tuple(context) for context in distinct_contexts(source.adversarial("test"))}
    assert len(tested) >= 400
    assert not tested & learnt and not tested & trained
    first, second = halves(examples, 1)
    assert not {e.conversation for e in first} & {e.conversation for e in second}
    assert {e.unsafe for e in first} == {e.unsafe for e in second} == {True, False}


def test_the_shipped_corpus_has_no_leak():
    check_no_leak(source_of(None))


def test_real_data_have_no_leak(real_data):
    check_no_leak(source_of(real_data, chat_max_dialogues=200))


def test_real_contexts_are_answered_by_the_bot(real_data):
    rows = list(source_of(real_data).adversarial("test"))
    assert {row.fields["speaker"] for row in rows} == {"bot"}
    assert all(row.context for row in rows)


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(SafetyError, match="There is no file safety_labels.jsonl.gz"):
        source_of(tmp_path)


def test_the_contradiction_set_has_no_leak_and_judges_of_its_own(tmp_path):
    source = source_of(Path("contradiction"))
    learnt = {tuple(e.context) for e in source.judge_examples(1)}
    tested = {tuple(context) for context in distinct_contexts(source.adversarial("test"))}
    assert len(tested) > 50 and not tested & learnt
    judges = source.train_judges(tmp_path, seed=1)
    assert judges.grader["auc"] > 0.7 and judges.labeller["auc"] > 0.7, "a bag of words has 0.5"
    assert judges.grader["sha256"] != judges.labeller["sha256"]
    assert load_judge(source.judge_spec(tmp_path / "grader.npz")).score(
        ["My cat is called Tom."], [["What is your cat called?"]], ["bot"]
    )[0].p_unsafe is not None  # fmt: skip
    assert source.tasks("reply") == {"safety:tiny:ordinary": 1.0, "safety:contradiction": 1.0}
    assert set(source.hashes) != set(source_of(None).hashes)


@pytest.mark.parametrize("data", ["shipped", "contradiction", "folder"])
def test_every_view_is_trained_with_options_that_its_tasks_know(data, tmp_path):
    """ParlAI refuses an option of a task that a command does not name."""
    if data == "folder":
        for name in ("safety_labels.jsonl.gz", "ordinary_dialogue.jsonl.gz"):
            (tmp_path / name).write_bytes(b"")
        source = source_of(tmp_path, chat_max_dialogues=10)
    else:
        source = source_of(Path("contradiction") if data == "contradiction" else None)
    for view in ("plain", "reply", "positive", "negative"):
        tasks = source.tasks(view)
        options = source.options_of(tasks)
        opt = TrainModel.setup_args().parse_kwargs(model="safety:mle", task=",".join(tasks), **options)
        assert ("chat_max_dialogues" in opt) == ("safety:chat" in tasks)
