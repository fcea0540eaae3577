from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from parlai_safety.errors import SafetyError
from parlai_safety.judges import hf, load_judge
from parlai_safety.judges.hf import HfJudge
from tests.judges.tiny_hf import BOTS, CONTEXTS, REPLIES, classifier

HARMS = ["severe_toxic", "toxic", "insult"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> str:
    return classifier(tmp_path_factory.mktemp("two"), ["fine", "toxic"])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    return classifier(tmp_path_factory.mktemp("many"), HARMS, problem_type="multi_label_classification")


def p_unsafe(judge: HfJudge, replies: list[str] = REPLIES, contexts: list[list[str]] = CONTEXTS) -> list[float]:
    values = [verdict.p_unsafe for verdict in judge.score(replies, contexts, ["bot"] * len(replies))]
    assert None not in values
    return values  # type: ignore[return-value]


def direct(folder: str, texts: list[tuple[str, ...]]) -> torch.Tensor:
    """Logits of transformers by itself, a text at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = [model(**tokenizer(*text, return_tensors="pt", truncation=True)).logits[0] for text in texts]
    return torch.stack(rows)


def test_scores_are_those_of_transformers_a_text_at_a_time(two: str) -> None:
    values = p_unsafe(HfJudge(two, batch_size=3))
    expected = direct(two, [(reply,) for reply in REPLIES]).softmax(-1)[:, 1].tolist()
    assert values == pytest.approx(expected, abs=1e-5)
    assert max(values) - min(values) > 0.05, "all texts score alike, so this test could not fail"
    # The other column is another number: swapped classes would be seen.
    assert all(abs(p - (1 - p)) > 1e-3 for p in values)


@pytest.mark.parametrize(
    ("join", "turns", "texts"),
    [
        (
            "newline",
            2,
            [("\n".join([*context[-1:], reply]),) for context, reply in zip(CONTEXTS, REPLIES, strict=True)],
        ),
        ("newline", 9, [("\n".join([*context, reply]),) for context, reply in zip(CONTEXTS, REPLIES, strict=True)]),
        ("pair", 9, [("\n".join(c), r) if c else (r,) for c, r in zip(CONTEXTS, REPLIES, strict=True)]),
    ],
)
def test_context_and_reply_are_joined_as_documented(two: str, join: hf.Join, turns: int, texts: list[tuple]) -> None:
    values = p_unsafe(HfJudge(two, join=join, context_turns=turns))
    assert values == pytest.approx(direct(two, texts).softmax(-1)[:, 1].tolist(), abs=1e-5)
    alone = p_unsafe(HfJudge(two))
    moved = [abs(a - b) > 1e-4 for a, b in zip(values, alone, strict=True)]
    assert moved == [bool(context) for context in CONTEXTS]


def test_order_and_batches_do_not_change_scores(two: str) -> None:
    values = p_unsafe(HfJudge(two, context_turns=3))
    for size in (1, 2, 5):
        judge = HfJudge(two, context_turns=3, batch_size=size)
        assert p_unsafe(judge, REPLIES[::-1], CONTEXTS[::-1])[::-1] == pytest.approx(values, abs=1e-5)
        batches = list(judge.batches(judge.encode(REPLIES, CONTEXTS)))
        assert [len(chosen) for chosen, _ in batches] == {1: [1] * 5, 2: [2, 2, 1], 5: [5]}[size]
        widths = [inputs["input_ids"].shape[1] for _, inputs in batches]
        assert widths == sorted(widths, reverse=True), "texts of like length stand together"


def test_each_harm_by_itself(many: str) -> None:
    judge = HfJudge(many)
    assert judge.unsafe_class == "toxic"
    logits = direct(many, [(reply,) for reply in REPLIES])
    assert p_unsafe(judge) == pytest.approx(logits.sigmoid()[:, 1].tolist(), abs=1e-5)
    insult = HfJudge(many, unsafe_class="insult")
    assert p_unsafe(insult) == pytest.approx(logits.sigmoid()[:, 2].tolist(), abs=1e-5)
    assert insult.fingerprint != judge.fingerprint


def test_swapped_names_turn_the_scores_round(two: str, tmp_path: Path) -> None:
    swapped = classifier(tmp_path, ["toxic", "fine"])
    assert p_unsafe(HfJudge(swapped)) == pytest.approx([1 - p for p in p_unsafe(HfJudge(two))], abs=1e-5)


def test_one_output_is_a_probability_by_itself(tmp_path: Path) -> None:
    folder = classifier(tmp_path, ["hate"])
    values = direct(folder, [(reply,) for reply in REPLIES]).sigmoid()[:, 0].tolist()
    assert p_unsafe(HfJudge(folder)) == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize(
    "labels", [["LABEL_0", "LABEL_1"], ["0", "1"], ["NEGATIVE", "POSITIVE"], ["hate", "offensive", "neither"]]
)
def test_an_unsafe_class_that_cannot_be_told_is_refused_unless_it_is_named(labels: list[str], tmp_path: Path) -> None:
    folder = classifier(tmp_path, labels)
    with pytest.raises(SafetyError, match="could be upside down.*HfJudge"):
        HfJudge(folder)
    judge = HfJudge(folder, unsafe_class=labels[1])
    column = direct(folder, [(reply,) for reply in REPLIES]).softmax(-1)[:, 1].tolist()
    assert p_unsafe(judge) == pytest.approx(column, abs=1e-5)
    with pytest.raises(SafetyError, match="said to be 'rude'"):
        HfJudge(folder, unsafe_class="rude")


def test_the_configuration_can_say_how(tmp_path: Path) -> None:
    told = {"unsafe_class": "LABEL_1", "context_turns": 3, "join": "pair"}
    folder = classifier(tmp_path, ["LABEL_0", "LABEL_1"], safety_judge=told)
    judge = load_judge(f"hf:{folder}", threshold=0.3)
    assert isinstance(judge, HfJudge)
    assert (judge.unsafe_class, judge.context_turns, judge.join, judge.threshold) == ("LABEL_1", 3, "pair", 0.3)
    assert HfJudge(folder, context_turns=1).context_turns == 1
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in ({"unsafe": "LABEL_1"}, {"context_turns": "three"}, "LABEL_1"):
        (tmp_path / "config.json").write_text(json.dumps(config | {"safety_judge": wrong}))
        with pytest.raises(SafetyError, match="entry safety_judge"):
            HfJudge(folder)


def test_what_is_too_long_loses_the_oldest_context_and_keeps_the_reply(two: str) -> None:
    # 40 tokens are read: the context is cut at its beginning, and the reply and the turn before it stay.
    old, last, reply = "lovely plan " * 60, "that is wrong", "you are a dreadful teapot"
    for join in ("newline", "pair"):
        judge = HfJudge(two, context_turns=3, join=join)  # type: ignore[arg-type]
        row = judge.encode([reply], [[old, last]])[0]["input_ids"]
        assert 30 <= len(row) <= 40
        whole = judge.tokenizer(f"{last}\n{reply}")["input_ids"][1:]
        if join == "newline":
            assert row[-len(whole) :] == whole
        else:
            assert row[-6:] == judge.tokenizer(reply)["input_ids"][1:][-6:]
        assert row[0] == judge.tokenizer.cls_token_id
    # A reply that is too long by itself keeps its beginning, as transformers cuts it.
    assert p_unsafe(judge, [old], [["hello"]]) == pytest.approx(
        direct(two, [(old,)]).softmax(-1)[:, 1].tolist(), abs=1e-5
    )


def test_the_readable_length_is_the_least_of_what_is_known(two: str, tmp_path: Path) -> None:
    from transformers import RobertaConfig

    assert HfJudge(two).max_length == 40
    assert HfJudge(two, max_length=12).max_length == 12
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config = RobertaConfig(vocab_size=200, max_position_embeddings=30, pad_token_id=0, **sizes)
    folder = classifier(tmp_path, ["fine", "toxic"], config=config)
    judge = HfJudge(folder)
    assert judge.max_length == 29  # positions are counted from behind the padding index, 0
    p_unsafe(judge, ["lovely plan " * 60], [[]])


def test_a_model_that_padding_would_disturb_gets_no_padding(two: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = p_unsafe(HfJudge(two))
    forward = torch.nn.Module.__call__

    def from_the_last_place(self: torch.nn.Module, *arguments: object, **inputs: object) -> object:
        result = forward(self, *arguments, **inputs)
        if type(self).__name__ == "BertForSequenceClassification":
            result.logits = result.logits + inputs["input_ids"][:, -1:].float()  # type: ignore[index]
            result.logits[:, 1] -= 2 * inputs["input_ids"][:, -1].float()  # type: ignore[index]
        return result

    monkeypatch.setattr(torch.nn.Module, "__call__", from_the_last_place)
    judge = HfJudge(two, batch_size=5)
    alone = [p_unsafe(judge, [reply], [[]])[0] for reply in REPLIES]
    assert p_unsafe(judge) == pytest.approx(alone, abs=1e-6)
    assert alone != pytest.approx(plain, abs=1e-3)


def test_a_decoder_without_padding_token_is_padded_with_its_end(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2Config

    config = GPT2Config(vocab_size=200, n_embd=16, n_layer=1, n_head=2, n_positions=64, initializer_range=0.5)
    config.bos_token_id = config.eos_token_id = 3
    folder = classifier(tmp_path, ["fine", "toxic"], config=config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token, tokenizer.eos_token = None, "[CLS]"
    tokenizer.save_pretrained(folder)
    judge = HfJudge(folder, batch_size=5)
    assert p_unsafe(judge) == pytest.approx([p_unsafe(judge, [reply], [[]])[0] for reply in REPLIES], abs=1e-5)


def test_the_fingerprint_is_of_the_weights_and_the_settings(two: str, tmp_path: Path) -> None:
    judge = HfJudge(two)
    before = judge.fingerprint
    p_unsafe(judge, ["lovely plan " * 60], [[]])  # a call that cuts leaves a mark in the tokenizer
    same = HfJudge(two, threshold=0.9, batch_size=2)
    p_unsafe(same, ["lovely plan " * 60], [[]])
    assert same.fingerprint == before and len(before) == 64
    code = f"from parlai_safety.judges import load_judge; print(load_judge('hf:{two}').fingerprint)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == before
    changed = [
        HfJudge(two, context_turns=2),
        HfJudge(two, context_turns=2, join="pair"),
        HfJudge(two, max_length=20),
        HfJudge(classifier(tmp_path, ["fine", "toxic"], seed=1)),
    ]
    assert len({before, *(judge.fingerprint for judge in changed)}) == 5


def test_a_reply_that_the_tokenizer_refuses_is_unscored_alone(two: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = HfJudge(two)
    encode = judge.encode

    def fails(replies: list[str], contexts: list[list[str]]) -> object:
        if "boom" in replies:
            raise TypeError("no such text")
        return encode(replies, contexts)

    monkeypatch.setattr(judge, "encode", fails)
    verdicts = judge.score([*REPLIES, "boom", ""], [*CONTEXTS, [], []], [*BOTS, "bot", "bot"])
    assert [verdict.p_unsafe is None for verdict in verdicts] == [False] * 5 + [True, True]
    assert verdicts[5].reason == "TypeError: no such text"


def test_weights_that_are_not_numbers_are_unscored(tmp_path: Path) -> None:
    judge = HfJudge(classifier(tmp_path, ["fine", "toxic"]))
    with torch.no_grad():
        judge.model.classifier.bias[0] = float("nan")
    assert {v.reason for v in judge.score(REPLIES, CONTEXTS, BOTS)} == {"the judge returned p_unsafe = nan"}  # type: ignore[arg-type]


def test_what_cannot_be_loaded(two: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModel, AutoTokenizer

    for name in (str(tmp_path / "nowhere"), "somebody/no-such-model"):
        with pytest.raises(SafetyError, match="cannot be loaded.*stored on this machine.*hf download") as caught:
            load_judge(f"hf:{name}")
        assert name in str(caught.value)
    AutoModel.from_pretrained(two).save_pretrained(tmp_path / "headless")
    AutoTokenizer.from_pretrained(two).save_pretrained(tmp_path / "headless")
    config = json.loads((tmp_path / "headless" / "config.json").read_text())
    (tmp_path / "headless" / "config.json").write_text(json.dumps(config | {"id2label": {"0": "fine", "1": "toxic"}}))
    with pytest.raises(SafetyError, match="has no weights for classifier.*judge at random"):
        HfJudge(str(tmp_path / "headless"))
    with pytest.raises(SafetyError, match="is a regression"):
        HfJudge(classifier(tmp_path / "regression", ["toxic"], problem_type="regression"))
    with pytest.raises(SafetyError, match="context_turns 0"):
        HfJudge(two, context_turns=0)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SafetyError, match=r'pip install "parlai_safety\[hf\]"'):
        load_judge(f"hf:{two}")
