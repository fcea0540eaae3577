"""`-m safety:word_block`: no reply ever holds a listed word or phrase, in any casing and in whatever tokens.

The rule of the word-list judge (`parlai_safety.judges.wordlist`), enforced while decoding: a token is forbidden where
it would complete a listed word; see `WordBlocker` for what "complete" is. ParlAI's `--beam-block-list-filename` forbids
some token sequences of each word, and other casings and cuttings slip through. Blocking words is no safety: most unsafe
replies hold no listed word. It is the plainest baseline beside the methods that learn, and no paper's method.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from parlai_safety.agents.causal import CausalDictionary
from parlai_safety.agents.decoders import Guided, GuidedAgent, GuidedOptions
from parlai_safety.errors import SafetyError
from parlai_safety.judges.wordlist import WordListJudge, read_terms
from parlai_safety.modeling.guidance import WordBlocker, WordBlockProcessor
from parlai_safety.options import option

WITHHELD = "every continuation would have completed a blocked word"
WHOLE_WORDS = ("re", "nltk", "split", "space")
BYTE_LEVEL = ("gpt2", "bytelevelbpe", "slow_bytelevel_bpe")
SENTENCE_PIECES, SPACE = "sentencepiece", "▁"


@dataclass(frozen=True)
class WordBlockOptions(GuidedOptions):
    """The options of word blocking."""

    word_list: str = option("", "File of one word or phrase a line; left out, the list that ships with the package.")


class WordBlockAgent(GuidedAgent):
    """Word blocking over any generator whose dictionary is one of ParlAI's own, and over causal language models.

    A reply for which no token was left ends there and holds a listed word; another hypothesis or sample is said in its
    place, and where there is none the act has an `error` and no text. `guidance` holds `ended`, how many of the model's
    hypotheses were lost like that.
    """

    options_class = WordBlockOptions
    title = "Word blocking: no listed word is ever completed"

    def load_resources(self) -> tuple[WordListJudge, WordBlocker]:
        """The list, as the judge that looks at whole replies, and as what blocks tokens.

        Raises:
            SafetyError: the list cannot be read or is empty, or the dictionary is of an unknown kind.
        """
        dictionary, base = self.base.dict, self.base
        terms = read_terms(self.settings.word_list or None)
        if getattr(dictionary, "tokenizer", None) in WHOLE_WORDS:  # which say "don ' t" for "don't"
            terms += [" ".join(dictionary.tokenize(term)) for term in terms]
        judge = WordListJudge(terms, spec=self.settings.word_list or "wordlist")
        pieces = spelling(dictionary)
        unsaid = (*getattr(base, "unsaid", ()), *_unsaid(dictionary))
        silent = [token for token in (base.START_IDX, *unsaid) if token < len(pieces)]
        return judge, WordBlocker(judge.terms, pieces, end=base.END_IDX, silent=silent)

    def processors(self, batch: Any, contexts: list[list[str]], max_length: int) -> list[Any]:
        """The processor of this batch."""
        return [WordBlockProcessor(self.resources[1], max_length=max_length)]

    def choose(self, contexts: list[list[str]], candidates: list[list[str]], guided: list[Guided]) -> list[int]:
        """The first candidate without a listed word."""
        judge = self.resources[0]
        chosen = []
        for some, one in zip(candidates, guided, strict=True):
            matches = [judge.matches(text) for text in some]
            one.record["ended"] = sum(matches)
            one.withheld = WITHHELD if all(matches) else None
            chosen.append(0 if all(matches) else matches.index(False))
        return chosen


def spelling(dictionary: Any) -> list[bytes]:
    """The UTF-8 bytes that each token adds to a text, so that a text is what its tokens' bytes are in a row.

    White space at the beginning and the end of a text may differ from what the dictionary makes of it.

    Args:
        dictionary: a ParlAI `DictionaryAgent`, or the `CausalDictionary` of a tokenizer of transformers.

    Returns:
        One piece a token, by id.

    Raises:
        SafetyError: it is unknown how this kind of dictionary joins its tokens.
    """
    tokens = [dictionary[index] for index in range(len(dictionary))]
    kind = _decoder(dictionary) if isinstance(dictionary, CausalDictionary) else dictionary.tokenizer
    if kind in WHOLE_WORDS:
        return [f" {token}".encode() for token in tokens]
    if kind == "bpe":
        parts = [token[:-2] if token.endswith("@@") else f"{token} " for token in tokens]
        return [part.replace("__newln__", "\n").encode() for part in parts]
    if kind in BYTE_LEVEL:
        return [_bytes_of(token) for token in tokens]
    if kind == SENTENCE_PIECES:
        return [_bytes_of_piece(token) for token in tokens]
    raise SafetyError(
        f"The base model's dictionary cuts text by {kind!r}",
        "To block words it must be known how tokens are joined, and of this kind it is not",
        f"Use a base model with --dict-tokenizer {', '.join((*WHOLE_WORDS, 'bpe'))} or {', '.join(BYTE_LEVEL)}",
    )


def _decoder(dictionary: CausalDictionary) -> str:
    """How a tokenizer of transformers joins its tokens, by the name of our own for it; else its own name."""
    backend = getattr(dictionary.format.tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return type(dictionary.format.tokenizer).__name__
    told = json.loads(backend.decoder.__getstate__())
    kinds = {part["type"] for part in told.get("decoders", [told])}
    if kinds == {"ByteLevel"}:
        return "bytelevelbpe"
    pieces = "Metaspace" in kinds or any(
        part["type"] == "Replace" and part["pattern"] == {"String": SPACE} for part in told.get("decoders", [])
    )
    return SENTENCE_PIECES if pieces else "+".join(sorted(kinds))


def _unsaid(dictionary: Any) -> list[int]:
    """Ids of a causal language model that its texts leave out: special tokens, and those that are no tokens at all."""
    if not isinstance(dictionary, CausalDictionary):
        return []
    return [*dictionary.format.special_ids, *range(len(dictionary.format.tokenizer), len(dictionary))]


def _bytes_of_piece(token: str) -> bytes:
    """The bytes of a token of SentencePiece, where `▁` is a space and `<0x41>` a byte."""
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, " ").encode()


def _bytes_of(token: str) -> bytes:
    """The bytes of a byte-level token; one with other characters is a special token and stands for itself."""
    alphabet = _alphabet()
    known = [alphabet.get(character) for character in token]
    return token.encode() if None in known else bytes(byte for byte in known if byte is not None)


@lru_cache(maxsize=1)
def _alphabet() -> dict[str, int]:
    """Which byte each character of byte-level BPE stands for.

    Bytes with a visible Latin-1 character are written as it, the others as the characters from 256 on, in their order.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + index): byte for index, byte in enumerate(hidden)}
