"""Dictionaries of ParlAI as tokenizers: every text has the same ids, every id the same words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parlai.core.dict import DictionaryAgent
from parlai.core.opt import Opt

from parlai_safety.errors import SafetyError
from parlai_safety.integrations.vocabularies import as_tokenizer
from tests.tiny_causal import words as byte_words

TEXTS = [
    "Hello there, you two: how's it going?! It is 3.5 km; ½ of it.",
    "line one\nline two\n\n  two spaces   and a tab\tend  ",
    "naïve café ÀÉ Straße 中文 🙂 e\u0301 x\x1cy\u203fz a_b __unk__ __end__ nothing_known",
    "",
]


def dictionary(folder: Path, kind: str, **more: Any) -> DictionaryAgent:
    found = json.loads(byte_words())["model"]
    merges = [" ".join(pair) for pair in found["merges"]]
    (folder / "vocab.json").write_text(json.dumps(found["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (folder / "gpt2").mkdir(exist_ok=True)
    (folder / "gpt2" / "encoder.json").write_text(json.dumps(found["vocab"]))
    (folder / "gpt2" / "vocab.bpe").write_text("\n".join(["#version: 0.2", *merges, ""]))
    built = DictionaryAgent(
        Opt(
            dict_tokenizer=kind,
            datapath=str(folder),
            bpe_vocab=str(folder / "vocab.json"),
            bpe_merge=str(folder / "merges.txt"),
            **more,
        )
    )
    if not hasattr(built, "bpe"):
        for text in TEXTS:
            built.add_to_dict([token for token in built.tokenize(text) if token and token != "nothing_known"])
        assert built["nothing_known"] == built["__unk__"] and len(built) > 20
    return built


KINDS = {
    "re": {},
    "re lower": {"dict_lower": True},
    "split": {},
    "space": {},
    "bytelevelbpe": {},
    "bytelevelbpe bare": {"bpe_add_prefix_space": False},
    "gpt2": {},
    "gpt2 prefixed": {"bpe_add_prefix_space": True},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict[str, tuple[DictionaryAgent, Any]]:
    """Each kind's dictionary with its tokenizer."""
    found = {}
    for name, more in KINDS.items():
        built = dictionary(tmp_path_factory.mktemp("words"), name.split()[0], **more)
        found[name] = built, as_tokenizer(built)
    return found


@pytest.fixture(scope="module")
def saved(pairs, tmp_path_factory) -> dict[str, Any]:
    """The tokenizers as they come back from their folders."""
    from transformers import AutoTokenizer

    found = {}
    for name, (_, tokenizer) in pairs.items():
        folder = tmp_path_factory.mktemp("saved")
        tokenizer.save_pretrained(folder)
        found[name] = AutoTokenizer.from_pretrained(folder)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_texts_have_the_same_ids_and_words(pairs, saved, kind):
    built, back = pairs[kind][0], saved[kind]
    assert len(back) == len(built)
    for text in TEXTS[:3]:
        ids = back(text)["input_ids"]
        assert ids == built.txt2vec(text)
        assert back.decode(ids) == built.vec2txt(ids)
    assert (back.pad_token_id, back.bos_token_id, back.eos_token_id, back.unk_token_id) == (0, 1, 2, 3)
    assert back.decode([5, 6, 2], skip_special_tokens=True) == built.vec2txt([5, 6])


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=30))
def test_any_text_has_the_same_ids(pairs, text):
    for kind, (built, tokenizer) in pairs.items():
        if text.strip() and not ("lower" in kind and "Σ" in text):
            assert tokenizer(text)["input_ids"] == built.txt2vec(text), kind


def test_every_character_is_cut_as_parlai_cuts_it(pairs):
    text = " ".join(chr(code) for code in range(0x3100) if code not in (0x3A3,))
    for kind in ("re", "split"):
        built, tokenizer = pairs[kind]
        cut = [token for token, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        assert cut == built.tokenize(text)


def test_special_tokens_stand_around_a_context(pairs):
    built, _ = pairs["re"]
    tokenizer = as_tokenizer(built, first="__start__", last="__end__")
    assert tokenizer("Hello you")["input_ids"] == [1, *built.txt2vec("Hello you"), 2]
    assert as_tokenizer(built, last="__end__")("Hello")["input_ids"] == [*built.txt2vec("Hello"), 2]
    padded = tokenizer(["Hello", "Hello you two"], padding=True)
    assert padded["input_ids"][0][-2:] == [0, 0] and padded["attention_mask"][0] == [1, 1, 1, 0, 0]


def test_own_special_tokens_of_a_byte_level_dictionary_are_kept(tmp_path):
    built = dictionary(tmp_path, "bytelevelbpe")
    built.add_additional_special_tokens(["__p1__"])
    tokenizer = as_tokenizer(built)
    ids = tokenizer("__p1__ Hello")["input_ids"]
    assert ids == built.txt2vec("__p1__ Hello") and ids[0] == built["__p1__"]


@pytest.mark.parametrize(
    ("kind", "change", "match"),
    [
        ("re", {"max_ngram_size": 2}, "--dict-max-ngram-size 2"),
        ("re", {"tokenizer": "nltk"}, "--dict-tokenizer nltk"),
        ("re", {"tokenizer": "bpe"}, "--dict-tokenizer bpe"),
        (
            "gpt2",
            {"additional_special_tokens": ["__p1__"]},
            r"special tokens with --dict-tokenizer gpt2.*bytelevelbpe\.?$",
        ),
    ],
)
def test_what_no_tokenizer_equals_is_refused(tmp_path, kind, change, match):
    built = dictionary(tmp_path, kind)
    for name, value in change.items():
        setattr(built, name, value)
    with pytest.raises(SafetyError, match=match):
        as_tokenizer(built)
