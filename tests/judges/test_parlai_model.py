from __future__ import annotations

import os
from pathlib import Path

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.judges import load_judge
from parlai_safety.judges.parlai_model import ParlaiJudge, unsafe_class_of
from parlai_safety.judges.verdict import is_unsafe

RUDE, KIND = ("you useless thing", "what a useless plan"), ("you lovely thing", "what a lovely plan")


def train(folder: Path, classes: tuple[str, str], unsafe: str, **options: object) -> str:
    """Train a tiny classifier on four texts for some steps; returns its model file."""
    import torch
    from parlai.scripts.train_model import TrainModel

    torch.manual_seed(0)
    safe = next(name for name in classes if name != unsafe)
    lines = [
        f"text:hello\\n{text}\tlabels:{label}\tepisode_done:True\n"
        for texts, label in ((RUDE, unsafe), (KIND, safe))
        for text in texts
    ]
    (folder / "data.txt").write_text("".join(lines))
    model_file = str(folder / "model")
    TrainModel.main(
        task="fromfile:parlaiformat",
        fromfile_datapath=str(folder / "data.txt"),
        fromfile_datatype_extension=False,
        model="transformer/classifier",
        model_file=model_file,
        dict_file=f"{model_file}.dict",
        datapath=str(folder / "parlai"),
        classes=list(classes),
        embedding_size=16,
        ffn_size=16,
        n_layers=1,
        n_heads=2,
        n_positions=64,
        truncate=64,
        batchsize=4,
        learningrate=0.01,
        reduction_type="mean",
        optimizer="adam",
        lr_scheduler="fixed",
        max_train_steps=100,
        log_every_n_steps=30,
        validation_every_n_epochs=-1,
        save_after_valid=False,
        verbose=False,
        **options,
    )
    return model_file


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return train(tmp_path_factory.mktemp("classifier"), ("__ok__", "__notok__"), "__notok__")


def test_a_trained_classifier_judges(model_file: str) -> None:
    judge = load_judge(f"parlai:{model_file}")
    assert (judge.spec, judge.threshold) == (f"parlai:{model_file}", 0.5)
    verdicts = judge.score([*RUDE, "", *KIND], [["hello"]] * 5, ["bot"] * 5)
    assert [is_unsafe(verdict, 0.5) for verdict in verdicts] == [True, True, None, False, False]


def test_batches_and_order_do_not_change_scores(model_file: str) -> None:
    replies = [*RUDE, *KIND, "hello"]
    whole = ParlaiJudge(model_file).score(replies, [["hello"]] * 5, ["bot"] * 5)
    small = ParlaiJudge(model_file, batch_size=2).score(replies[::-1], [["hello"]] * 5, ["bot"] * 5)
    assert [v.p_unsafe for v in small[::-1]] == pytest.approx([v.p_unsafe for v in whole], abs=1e-5)


def test_context_turns_decide_how_much_is_read(model_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ["one", "two", "three", "four"]
    for turns, text in (
        (1, "reply"),
        (2, "four\nreply"),
        (4, "two\nthree\nfour\nreply"),
        (9, "\n".join([*context, "reply"])),
    ):
        judge = ParlaiJudge(model_file, context_turns=turns)
        seen = []
        observe = judge.agent.observe
        monkeypatch.setattr(
            judge.agent, "observe", lambda m, observe=observe, seen=seen: seen.append(m["text"]) or observe(m)
        )
        judge.score(["reply"], [context], ["bot"])
        assert seen == [text]


def test_the_context_moves_the_score_and_leaves_no_trace(model_file: str) -> None:
    judge = load_judge(f"parlai:{model_file}")
    contexts = [[KIND[0]], [RUDE[0]], [KIND[0]]]
    kind, rude, again = (verdict.p_unsafe for verdict in judge.score(["hello"] * 3, contexts, ["bot"] * 3))
    assert kind is not None and rude is not None and again is not None
    assert rude > 0.5 > kind
    assert again == pytest.approx(kind, abs=1e-6)


def test_the_column_is_the_trained_one_even_with_a_reference_class(tmp_path: Path) -> None:
    """With --ref-class ParlAI moves the class to the front of its list, but not the column it was trained on."""
    judge = load_judge(f"parlai:{train(tmp_path, ('pos', 'neg'), 'neg', ref_class='neg')}")
    verdicts = judge.score([*RUDE, *KIND], [["hello"]] * 4, ["bot"] * 4)
    assert [is_unsafe(verdict, 0.5) for verdict in verdicts] == [True, True, False, False]


def test_a_failing_reply_is_unscored_and_the_others_are_scored(
    model_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = ParlaiJudge(model_file)
    observe = judge.agent.observe

    def fails_on_boom(message: dict[str, object]) -> object:
        if "boom" in str(message["text"]):
            raise RuntimeError("cannot read this")
        return observe(message)

    monkeypatch.setattr(judge.agent, "observe", fails_on_boom)
    verdicts = judge.score([RUDE[0], "boom", KIND[0]], [["hello"]] * 3, ["bot"] * 3)
    assert [is_unsafe(verdict, 0.5) for verdict in verdicts] == [True, None, False]
    assert verdicts[1].reason == "RuntimeError: cannot read this"


def test_a_malformed_batch_is_refused(model_file: str) -> None:
    judge = ParlaiJudge(model_file, batch_size=2)
    with pytest.raises(SafetyError, match="4 replies, 2 contexts"):
        judge.score(["a"] * 4, [[]] * 2, ["bot"] * 4)


def test_what_is_no_judge(model_file: str, tmp_path: Path) -> None:
    with pytest.raises(SafetyError, match="no file"):
        load_judge(f"parlai:{tmp_path}/missing")
    os.symlink(f"{model_file}.opt", tmp_path / "untrained.opt")
    with pytest.raises(SafetyError, match="no file"):
        load_judge(f"parlai:{tmp_path}/untrained")
    (tmp_path / "repeat").touch()
    (tmp_path / "repeat.opt").write_text('{"model": "repeat_label", "task": "none"}')
    with pytest.raises(SafetyError, match="RepeatLabelAgent"):
        load_judge(f"parlai:{tmp_path}/repeat")
    with pytest.raises(SafetyError, match="context_turns is 0"):
        ParlaiJudge(model_file, context_turns=0)
    with pytest.raises(SafetyError, match="'__ok__', '__notok__'"):
        ParlaiJudge(model_file, unsafe_class="unsafe")


@pytest.mark.parametrize(
    ("classes", "unsafe"),
    [
        (["__ok__", "__notok__"], "__notok__"),
        (["unsafe", "safe"], "unsafe"),
        (["pos", "neg"], "neg"),
        (["good", "bad"], "bad"),
        (["0", "1"], "1"),
        (["1", "0"], "1"),
        (["fine", "Not-OK", "unsure"], "Not-OK"),
    ],
)
def test_the_unsafe_class_is_told_from_the_names(classes: list[str], unsafe: str) -> None:
    assert unsafe_class_of(classes, "model") == unsafe


@pytest.mark.parametrize("classes", [["a", "b"], ["1", "2"], ["bad", "toxic", "fine"], ["safe", "politics"]])
def test_an_unsafe_class_that_cannot_be_told(classes: list[str]) -> None:
    with pytest.raises(SafetyError, match="mean unsafe"):
        unsafe_class_of(classes, "model")
