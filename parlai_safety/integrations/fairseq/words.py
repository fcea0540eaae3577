"""The dictionary of a fairseq model, and which tokenizer its words come from.

`dict.txt` has a line for each word: the word, a space, its count. Four symbols that the file does not have come before
them: `<s>`, `<pad>`, `</s>`, `<unk>`. What a word is depends on what was done to the text before fairseq saw it. Read
here are whole words, and the numbers of GPT-2's byte-level BPE (BART, R2C2); pieces of sentencepiece and of subword-nmt
are recognised and refused unless the caller will split the text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from parlai_safety.errors import SafetyError, did_you_mean

BOS, PAD, EOS, UNK = range(4)
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
TOKENIZERS = ("auto", "space", "gpt2")


class Words(NamedTuple):
    """The vocabulary in fairseq's order."""

    symbols: list[str]
    """One for each row of the model's table; for GPT-2's BPE already its tokens, and not their numbers."""
    merges: list[str] | None
    """The merges of a byte-level BPE, best first; None where words are separated by single spaces."""


def read_dictionary(path: str | Path) -> list[str]:
    """The symbols of a `dict.txt`, special ones first.

    Raises:
        SafetyError: the file is missing, a line is not a word and a count, or a word occurs twice.
    """
    path = Path(path)
    symbols = list(SPECIAL)
    known = set(symbols)
    for number, line in enumerate(_text(path, "dictionary", "dict.txt").split("\n"), 1):
        if not line.rstrip():
            continue
        word, _, count = line.rstrip().rpartition(" ")
        if not word or "\t" in word or not count.isdecimal():
            raise SafetyError(
                f"Line {number} of {str(path)!r} is {line.rstrip()[:40]!r}",
                "Each line of a dictionary of fairseq is a word, a space and its count, and nothing more",
                "Name the dict.txt that fairseq-preprocess wrote for this model",
            )
        if word in known:
            raise SafetyError(
                f"Line {number} of {str(path)!r} has the word {word!r} again",
                "A word has one row in the table of a model, and it would not be clear which",
                "Name the dict.txt of this very model, or mend the line",
            )
        known.add(word)
        symbols.append(word)
    return symbols


def read_words(
    dictionary: str | Path,
    rows: int,
    *,
    tokenizer: str = "auto",
    encoder: str | Path | None = None,
    merges: str | Path | None = None,
    mask: bool = False,
) -> Words:
    """The vocabulary of a model.

    Args:
        dictionary: the `dict.txt` of the model.
        rows: rows in the model's table of words.
        tokenizer: "space" for words separated by single spaces, "gpt2" for the numbers of GPT-2's BPE; "auto" finds
            out, and refuses pieces of a tokenizer that is not read here.
        encoder: `encoder.json` of that BPE, token -> number.
        merges: `vocab.bpe` of that BPE, a line for each merge.
        mask: the model may have `<mask>` as one row more than the dictionary, as tasks of denoising add it.

    Returns:
        As many symbols as rows.

    Raises:
        SafetyError: the files do not fit together, are missing or broken, or the tokenizer is another one.
    """
    if tokenizer not in TOKENIZERS:
        raise SafetyError(
            f"The tokenizer is {tokenizer!r}",
            f"It can only be one of {', '.join(TOKENIZERS)}",
            did_you_mean(tokenizer, TOKENIZERS, "Leave it at auto"),
        )
    symbols = read_dictionary(dictionary)
    if mask and rows == len(symbols) + 1 and "<mask>" not in symbols:
        symbols.append("<mask>")
    if rows != len(symbols):
        raise SafetyError(
            f"The dictionary {str(dictionary)!r} gives {len(symbols)} symbols, and the model has {rows} rows",
            "Each symbol has one row, so this is not the dictionary of this model",
            "Name the dict.txt from the folder of binarised data that the model was trained on",
        )
    kind = _kind(symbols) if tokenizer == "auto" else tokenizer
    if kind == "gpt2":
        return _gpt2_words(symbols, encoder, merges)
    if kind != "space":
        raise SafetyError(
            f"The dictionary {str(dictionary)!r} holds pieces of {kind}",
            "ParlAI has no tokenizer that splits text into just these pieces",
            "If you will split the text yourself, pieces joined by single spaces, add --tokenizer space",
        )
    if encoder or merges:
        raise SafetyError(
            f"BPE files were given for {str(dictionary)!r}, which holds words",
            "The files of GPT-2's BPE belong to a dictionary of numbers, as BART has it",
            "Leave the BPE files out, or name the dictionary of numbers",
        )
    return Words(symbols, None)


def _kind(symbols: list[str]) -> str:
    words = [word for word in symbols[len(SPECIAL) :] if not word.startswith(("madeupword", "<"))]
    if words and all(word.isdigit() for word in words):
        return "gpt2"
    if any(word.startswith("\u2581") for word in words):
        return "sentencepiece"
    if any(word.endswith("@@") for word in words):
        return "subword-nmt"
    return "space"


def _gpt2_words(symbols: list[str], encoder: str | Path | None, merges: str | Path | None) -> Words:
    if not encoder or not merges:
        raise SafetyError(
            "The words of the dictionary are numbers",
            "They stand for the tokens of a byte-level BPE, as GPT-2 has it, and its files say which",
            "Add --bpe-encoder encoder.json --bpe-merges vocab.bpe",
        )
    try:
        number_of = json.loads(_text(Path(encoder), "BPE encoder", "encoder.json"))
        token_of = {str(number): token for token, number in number_of.items()}
        if len(token_of) < len(number_of):
            raise ValueError("two tokens have one number")
    except (ValueError, AttributeError) as error:
        raise SafetyError(
            f"{str(encoder)!r} is no BPE encoder ({error})",
            "It must be a JSON object of tokens and their numbers",
            "Name the encoder.json that the model's text was encoded with",
        ) from error
    lines = _text(Path(merges), "BPE merges", "vocab.bpe").split("\n")
    pairs = [line for line in lines if line and not line.startswith("#version")]
    tokens = [token_of.pop(symbol, symbol) for symbol in symbols]
    strange = [token for token in tokens[len(SPECIAL) :] if token.isdigit() and token not in number_of]
    if strange or token_of:
        raise SafetyError(
            f"{str(encoder)!r} has {len(token_of)} tokens that the dictionary has not, and lacks {len(strange)} of its",
            "The tokenizer would make tokens for which the model has no row",
            "Name the encoder.json and the dict.txt that belong together",
        )
    if len(set(tokens)) != len(tokens):
        raise SafetyError(
            f"A token of {str(encoder)!r} has the name of another symbol of the dictionary",
            "A name has one row in the table of a model, and it would not be clear which",
            "Name the encoder.json and the dict.txt that belong together",
        )
    broken = [pair for pair in pairs if len(pair.split()) != 2 or pair.replace(" ", "") not in number_of]
    if broken:
        raise SafetyError(
            f"{str(merges)!r} has the merge {broken[0]!r}",
            "It makes a token that the encoder has not",
            "Name the vocab.bpe that belongs to the encoder.json",
        )
    return Words(tokens, pairs)


def _text(path: Path, what: str, example: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SafetyError(
            f"The {what} {str(path)!r} cannot be read ({error})",
            f"The model's tokens have no meaning without it; it is a file of UTF-8 text, such as {example}",
            "Check the path",
        ) from error
