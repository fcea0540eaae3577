"""Phrases under word blocking: in whatever tokens, casing and white space they are begun, none is ever completed."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parlai.core.agents import create_agent_from_model_file
from parlai.core.dict import DictionaryAgent
from parlai.core.opt import Opt

from parlai_safety.agents.causal import CausalDictionary
from parlai_safety.agents.word_block.word_block import _unsaid, spelling
from parlai_safety.errors import SafetyError
from parlai_safety.judges.wordlist import WordListJudge
from parlai_safety.modeling.guidance import WordBlocker
from tests.agents.small import options, run, write_talk
from tests.agents.test_decoders import guided
from tests.integrations.test_vocabularies import byte_words
from tests.tiny_causal import tiny_causal

TERMS = ["old tin", "dim", "caf\u00e9 on fire", "don't you dare"]
SPOKEN = st.sampled_from(TERMS + ["tin old", "dimension", "old tinsel", "hot caf\u00e9", "cold tin", "do you dare"])
SPACES = st.sampled_from([" ", "  ", "\n", " \n ", "\t"])


def dictionary(kind: str) -> Any:
    """A dictionary without any model."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "causal_lm":
            return CausalDictionary(Opt(hf_model=str(tiny_causal(folder)), dict_file=None))
        found = json.loads(byte_words())["model"]
        (Path(folder) / "vocab.json").write_text(json.dumps(found["vocab"]))
        (Path(folder) / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, found["merges"]), ""]))
        files = {"bpe_vocab": f"{folder}/vocab.json", "bpe_merge": f"{folder}/merges.txt"}
        return DictionaryAgent(Opt(dict_tokenizer="bytelevelbpe", datapath=folder, dict_maxexs=0, **files))


@functools.cache
def blocker(kind: str) -> tuple[WordBlocker, dict[bytes, list[tuple[int, bytes]]], int]:
    """The blocker of a dictionary, its pieces by their first byte, and its end token."""
    words = dictionary(kind)
    pieces, end = spelling(words), words[words.end_token]
    silent = [words[words.start_token], *_unsaid(words)]
    made = WordBlocker(TERMS, pieces, end=end, silent=[token for token in silent if token < len(pieces)])
    begun: dict[bytes, list[tuple[int, bytes]]] = {}
    for token, piece in enumerate(pieces):
        if piece and token != end and token not in silent:
            begun.setdefault(piece[:1], []).append((token, piece))
    return made, begun, end


@pytest.mark.parametrize("kind", ["causal_lm", "bytelevelbpe"])
@settings(max_examples=40)
@given(spoken=st.lists(SPOKEN, min_size=1, max_size=3), space=SPACES, data=st.data())
def test_a_phrase_is_blocked_in_any_tokens_casing_and_white_space(kind, spoken, space, data):
    """A walk through tokens that spell a text meets a blocked one just where the text has a listed phrase."""
    made, begun, end = blocker(kind)
    text = " ".join(phrase.replace(" ", space) for phrase in spoken)
    change = data.draw(st.sampled_from([str, str.upper, str.title, str.swapcase]))
    text = change(text.replace("'", data.draw(st.sampled_from("'\u2019"))))
    place, left, met = made.start, text.encode(), False
    while not met:
        blocked = made.blocked(place)
        assert blocked is not None
        fitting = [(token, piece) for token, piece in begun.get(left[:1], []) if left.startswith(piece)]
        token, piece = data.draw(st.sampled_from(fitting)) if left else (end, b"")
        met = token in blocked.tolist()
        if token == end:
            break
        place, left = made.after(place, token), left[len(piece) :]
    assert met == WordListJudge(TERMS).matches(text)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    talk = write_talk(folder / "talk.jsonl", [{"context": ["Hi."], "reply": "Oh, don't you go, old tin."}])
    loop, _ = run(**options("safety:mle", talk, folder / "model", dict_tokenizer="re", max_train_steps=1))
    loop.agent.save()
    return folder / "model"


def test_words_with_marks_are_blocked_as_a_dictionary_of_whole_words_says_them(model, tmp_path):
    """Such a dictionary joins its tokens by spaces, and would say "don ' t"."""
    words = tmp_path / "words.txt"
    words.write_text("Don't you\n")
    agent = guided("word_block", str(model), word_list=str(words))
    judge, made = agent.resources
    said = [agent.dict[word] for word in ("don", "'", "t", "you")]
    text = agent.base._v2t(said)
    assert text == "don ' t you" and judge.matches(text) and judge.matches("don't you") and not judge.matches("you don")
    place = made.start
    for token in said[:-1]:
        assert token not in made.blocked(place).tolist()
        place = made.after(place, token)
    assert said[-1] in made.blocked(place).tolist()


def test_a_block_list_that_cannot_be_read_is_not_left_out(model, tmp_path):
    """ParlAI logs an error and goes on; a list that can be read counts for the batched sampler, too."""
    listed, empty = tmp_path / "listed.txt", tmp_path / "empty.txt"
    listed.write_text("old tin\n")
    empty.write_text("\n")
    opt = {"loglevel": "critical", "interactive_mode": True}
    agent = create_agent_from_model_file(str(model), {**opt, "beam_block_list_filename": str(listed)})
    assert agent.dict.txt2vec("old tin") in agent.beam_block_list._phrase_ngrams[2]
    for path in (tmp_path / "missing.txt", empty):
        with pytest.raises(SafetyError, match="--beam-block-list-filename got"):
            create_agent_from_model_file(str(model), {**opt, "beam_block_list_filename": str(path)})
        with pytest.raises(SafetyError, match="--beam-block-list-filename got"):
            guided("word_block", str(model), beam_block_list_filename=str(path))
