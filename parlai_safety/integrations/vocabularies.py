"""ParlAI's dictionaries as tokenizers of transformers: the same tokens under the same ids.

Known are the byte-level ones (`bytelevelbpe`, `gpt2`, `slow_bytelevel_bpe`) and those that cut text at spaces and
punctuation (`re`, `split`, `space`). What counts as a letter or a space is as in this version of Python. Lower-casing
differs at a Greek sigma that ends a word. Left out: `bpe` and `nltk`, which no tokenizer of transformers equals, and
n-grams of words.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from parlai_safety.errors import SafetyError

BYTES = ("bytelevelbpe", "gpt2", "slow_bytelevel_bpe")
WORDS = ("re", "split", "space")
MANY = 999
"""Spaces at the beginning of a reply that are taken away."""
_CUT_BY_SPLIT = r".,;:!?"


def as_tokenizer(words: Any, *, first: str | None = None, last: str | None = None, longest: int | None = None) -> Any:
    """A dictionary of ParlAI as a `PreTrainedTokenizerFast`.

    Args:
        words: a `DictionaryAgent`.
        first: the special token before every context, or None.
        last: the special token after every context, or None.
        longest: tokens of a context at most, which the tokenizer cuts where it is asked to; None for any number.

    Raises:
        SafetyError: no tokenizer gives the same tokens.
    """
    from tokenizers import AddedToken, Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    kind = words.tokenizer
    if words.max_ngram_size > 1:
        raise _no_tokenizer(f"--dict-max-ngram-size {words.max_ngram_size}")
    if kind not in BYTES + WORDS:
        raise _no_tokenizer(f"--dict-tokenizer {kind}")
    if kind != "bytelevelbpe" and getattr(words, "additional_special_tokens", None):
        raise _no_tokenizer(f"special tokens with --dict-tokenizer {kind}", "bytelevelbpe")
    built: Any = _of_words(words) if kind in WORDS else Tokenizer.from_str(json.dumps(_of_bytes(words)))
    named = [words.null_token, words.start_token, words.end_token, words.unk_token]
    if kind == "bytelevelbpe":
        named += list(getattr(words, "additional_special_tokens", ()))
    # No token takes a new id by this: all are in the vocabulary already.
    built.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in named])
    wrong = [token for token, id_ in words.tok2ind.items() if built.token_to_id(token) not in (id_, None)]
    if wrong or any(built.token_to_id(token) != words[token] for token in named):
        raise _no_tokenizer(f"ids that cannot be kept ({(wrong or named)[0]})")
    around = [token for token in (first, last) if token]
    if around:
        template = " ".join(token for token in (first, "$A", last) if token)
        built.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(token, words[token]) for token in around]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        pad_token=words.null_token,
        bos_token=words.start_token,
        eos_token=words.end_token,
        unk_token=words.unk_token,
        padding_side="right",
        truncation_side="left",
        clean_up_tokenization_spaces=False,
        **({} if longest is None else {"model_max_length": longest}),
        # ParlAI finds the names of special tokens in a text only where its byte-level tokenizer is that of tokenizers.
        split_special_tokens=kind != "bytelevelbpe",
    )


def _no_tokenizer(got: str, kinds: str = "bytelevelbpe, gpt2 or re") -> SafetyError:
    return SafetyError(
        f"The dictionary has {got}",
        "A tokenizer of transformers that gives the same tokens for every text is not to be had",
        f"Export the weights alone with --tokenizer false, or train with --dict-tokenizer {kinds}",
    )


def _of_words(words: Any) -> Any:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    # No text that a word-level dictionary cuts holds an empty token; ParlAI's own, which it may hold, stands for none.
    built = Tokenizer(models.WordLevel(dict(words.tok2ind), unk_token=words.unk_token))
    letters, spaces = _class_of(r"\w"), _class_of(r"\s")
    steps: list[Any] = [normalizers.Lowercase()] if words.lower else []
    if words.tokenizer == "re":
        pattern = f"[{letters}]+|[^{letters}{spaces}]|\\n"
    elif words.tokenizer == "split":
        pattern = f"[^{spaces}{_CUT_BY_SPLIT}]+|[{_CUT_BY_SPLIT}]"
    else:
        pattern = "[^ ]+"
        # Between two spaces ParlAI finds an empty word, which is unknown.
        steps += [
            normalizers.Replace(Regex(f"\\A[{spaces}]+|[{spaces}]+\\z"), ""),
            normalizers.Replace(Regex(" (?= )"), f" {words.unk_token}"),
        ]
    if steps:
        built.normalizer = normalizers.Sequence(steps)
    built.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    return built


def _class_of(pattern: str) -> str:
    """The characters that a pattern of Python matches, as ranges for the inside of [...]."""
    text = "".join(chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)
    ranges: list[list[int]] = []
    for character in re.findall(pattern, text):
        code = ord(character)
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\x{{{low:x}}}-\\x{{{high:x}}}" for low, high in ranges)


def _of_bytes(words: Any) -> dict[str, Any]:
    """The description of a byte-level tokenizer with ParlAI's ids."""
    helper = words.bpe
    if words.tokenizer == "bytelevelbpe":
        found = json.loads(helper.tokenizer.to_str())
        vocabulary = {token: words.tok2ind[token] for token in found["model"]["vocab"]}
        merges, steps, prefix = found["model"]["merges"], found["normalizer"], helper.add_prefix_space
    else:
        vocabulary = {token: words.tok2ind[spelled] for token, spelled in helper.encoder.items()}
        merges = [list(pair) for pair in sorted(helper.bpe_ranks, key=helper.bpe_ranks.__getitem__)]
        # ParlAI puts a space before every text here, also before one that begins with a space.
        steps, prefix = ({"type": "Prepend", "prepend": " "} if helper.add_prefix_space else None), False
    if words.lower:
        steps = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *([steps] if steps else [])]}
    taken = set(vocabulary.values())
    # What else has an id (special tokens, fillers of fp16) is kept under it.
    vocabulary |= {token: id_ for token, id_ in words.tok2ind.items() if id_ not in taken}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": bool(prefix), "trim_offsets": True, "use_regex": True}
    decoder: dict[str, Any] = bytes_
    if helper.add_prefix_space:  # and takes it away again, with all that follow
        strip = {"type": "Strip", "content": " ", "start": MANY, "stop": 0}
        decoder = {"type": "Sequence", "decoders": [bytes_, strip]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": steps,
        "pre_tokenizer": bytes_,
        "post_processor": None,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
