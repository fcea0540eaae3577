"""`-t safety:topics`, and a ParlAI classifier trained on it as a `topics:` judge."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.judges import load_judge
from parlai_safety.judges.topic_training import CLASSES
from parlai_safety.message import check_message
from tests.tasks.test_contradiction import label_of, messages


def test_the_shipped_sentences() -> None:
    for split in ("train:ordered", "valid", "test"):
        found = messages("safety:topics", split)
        counts = Counter(label_of(m) for m in found)
        assert set(counts) == set(CLASSES) and counts["none"] > counts["drugs"]
        for message in found[:: len(found) // 50]:
            check_message(message, "a message")
            assert message["topic"] == label_of(message) and message["episode_done"]


def test_the_real_sentences_from_a_folder(tmp_path) -> None:
    rows = [{"text": f"text {i}", "topic": CLASSES[i // 3 % 5], "license": "MIT"} for i in range(60)]
    (tmp_path / "sensitive_topics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SafetyError, match="neither sensitive_topics"):
        messages("safety:topics:real", "valid", safety_datapath=str(tmp_path))
    (tmp_path / "sensitive_topics.jsonl").rename(tmp_path / "data_valid.jsonl")
    texts = [
        {m["text"] for m in messages("safety:topics:real", split, safety_datapath=str(tmp_path))}
        for split in ("train:ordered", "valid", "test")
    ]
    assert {f"text {i}" for i in range(60)} <= set.union(*texts)
    # Single sentences of the ordinary talk recur across conversations.
    on_topic = [{text for text in found if text.startswith("text ")} for found in texts]
    assert sum(map(len, on_topic)) == 60


def test_without_folder_and_network_it_says_what_to_do(tmp_path, monkeypatch) -> None:
    from parlai_safety.tasks.topics import agents

    def no_network(dataset, datapath):
        raise SafetyError("It could not be downloaded", "The host is gone", "Use --safety-standin true")

    monkeypatch.setattr(agents, "prepare", no_network)
    monkeypatch.delenv("SAFETY_DATA", raising=False)
    with pytest.raises(SafetyError, match="The host is gone.*-t safety:topics, which ships"):
        messages("safety:topics:real", "valid", datapath=str(tmp_path))


def test_a_transformer_trained_on_it_is_a_judge_of_topics(tmp_path) -> None:
    import torch
    from parlai.scripts.train_model import TrainModel

    torch.manual_seed(0)
    model = str(tmp_path / "model")
    TrainModel.main(
        task="safety:topics", model="safety:judge", model_file=model, dict_file=f"{model}.dict",
        datapath=str(tmp_path / "parlai"), classes=list(CLASSES), embedding_size=16, ffn_size=16, n_layers=1, n_heads=2,
        n_positions=64, truncate=64, batchsize=64, learningrate=0.02, optimizer="adam", lr_scheduler="fixed",
        reduction_type="mean", dict_maxexs=500, max_train_steps=40, validation_every_n_epochs=-1,
        validation_every_n_secs=-1, save_after_valid=False, log_every_n_steps=1000, verbose=False,
        validation_max_exs=16, short_final_eval=True, loglevel="error",
    )  # fmt: skip
    judge = load_judge(f"topics:{model}")
    assert judge.watched == list(CLASSES[:-1]) and judge.threshold == 0.5
    texts = ["Cannabis?", "The weather?", ""]
    p, q, nothing = (v.p_unsafe for v in judge.score(texts, [[]] * 3, ["bot"] * 3))
    assert p is not None and q is not None and p > q and nothing is None
    rows = judge.model.probabilities(texts[:2])
    assert rows.shape == (2, 6) and rows.sum(axis=1) == pytest.approx([1, 1])
    assert [1 - row[judge.model.classes["none"]] for row in rows] == pytest.approx([p, q], abs=1e-6)
    only = load_judge(f"topics:{model}#drugs")
    assert only.score(texts[:1], [[]], ["bot"])[0].p_unsafe == pytest.approx(rows[0][judge.model.classes["drugs"]])
    assert only.fingerprint != judge.fingerprint
