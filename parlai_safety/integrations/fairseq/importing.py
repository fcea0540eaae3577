"""Write what a fairseq checkpoint becomes: a ParlAI model file, or a Hugging Face folder for a language model.

Everything is checked and written under a temporary name first, so that a failure leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from parlai_safety.errors import SafetyError
from parlai_safety.files import write_json, write_text
from parlai_safety.integrations.fairseq.checkpoint import read_checkpoint
from parlai_safety.integrations.fairseq.language_model import LanguageModel, to_language_model, tokenizer_json
from parlai_safety.integrations.fairseq.seq2seq import Generator, to_generator
from parlai_safety.integrations.fairseq.settings import architecture, check_settings
from parlai_safety.integrations.fairseq.words import SPECIAL, UNK, Words, read_words

_ENDINGS = (".opt", ".dict", ".dict-vocab.json", ".dict-merges.txt")
# Of the machine that imports, and not of the model.
_OF_THIS_MACHINE = ("override", "parlai_home", "starttime", "datapath", "download_path", "model_file", "dict_file")


class Imported(NamedTuple):
    """What an import wrote."""

    kind: str
    """"parlai" or "hf"."""
    out: Path
    """The model file, or the folder."""
    symbols: int
    """Symbols of fairseq's dictionary."""
    parameters: int
    """Numbers in the written file that belong to the model; a shared table counts once."""


def import_checkpoint(
    checkpoint: str | Path,
    dictionary: str | Path,
    out: str | Path,
    *,
    tokenizer: str = "auto",
    bpe_encoder: str | Path | None = None,
    bpe_merges: str | Path | None = None,
    prefix_space: bool = False,
    fp16_rows: bool = False,
    ignore_settings: Sequence[str] = (),
    overwrite: bool = False,
) -> Imported:
    """Import a checkpoint of fairseq, without fairseq.

    A `transformer` or `bart` becomes a ParlAI model: `out`, `out.opt`, `out.dict`, for transformer/generator. A
    `transformer_lm` becomes a folder that `AutoModelForCausalLM` and `-m safety:causal_lm --hf-model` load. Both give
    the logits of fairseq for every symbol.

    Args:
        checkpoint: file of `fairseq-train`; nothing in it is run.
        dictionary: its `dict.txt`.
        out: model file or folder to make.
        tokenizer: "auto", "space" or "gpt2"; see `read_words`.
        bpe_encoder: `encoder.json` where the dictionary holds numbers of GPT-2's BPE.
        bpe_merges: `vocab.bpe` of the same.
        prefix_space: put a space before a text, as BPEs do that were trained so; fairseq's own does not.
        fp16_rows: fill a ParlAI model's dictionary up to a multiple of eight, for `--fp16 true`; see `to_generator`.
        ignore_settings: settings of the checkpoint that are not known here and, as the caller knows, change no number
            that the model computes.
        overwrite: replace the model that is there; a folder with other files in it is left alone.

    Raises:
        SafetyError: something is there already, a file does not fit, or the model has a part that has no counterpart.
    """
    out = Path(out)
    there = [path for path in (out, *(Path(f"{out}{end}") for end in _ENDINGS)) if os.path.lexists(path)]
    if there and not overwrite:
        raise SafetyError(
            f"There is already {str(there[0])!r}",
            "An import writes a whole model and would replace it",
            "Name another --out, or add --overwrite true",
        )
    read = read_checkpoint(checkpoint)
    table = read.weights.get("decoder.embed_tokens.weight")
    if table is None or table.dim() != 2:
        raise SafetyError(
            f"The checkpoint {str(checkpoint)!r} has no decoder.embed_tokens.weight",
            "A model that talks has a decoder with one table of words, which encoders alone and adaptive inputs lack",
            "Import a checkpoint of a transformer, bart or transformer_lm",
        )
    check_settings(read, ignore_settings)
    mask = "denoising" in str(read.settings.get("task")) or architecture(read.settings).startswith("bart")
    words = read_words(dictionary, len(table), tokenizer=tokenizer, encoder=bpe_encoder, merges=bpe_merges, mask=mask)
    _make_folder(out.parent)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", suffix=".part") as temporary:
        if any(name.startswith("encoder.") for name in read.weights):
            generator = to_generator(read, words, fp16_rows=fp16_rows)
            _write_generator(generator, words, Path(temporary) / out.name, prefix_space)
            _move_files(Path(temporary), out)
            return Imported("parlai", out, len(words.symbols), _count(generator.weights))
        model = to_language_model(read)
        _write_folder(model, words, Path(temporary) / out.name, prefix_space)
        _move_folder(Path(temporary), out)
        return Imported("hf", out, len(words.symbols), _count(model.weights))


def _write_generator(generator: Generator, words: Words, path: Path, prefix_space: bool) -> None:
    import torch
    from parlai.agents.transformer.modules import TransformerGeneratorModel
    from parlai.core.dict import DictionaryAgent
    from parlai.core.params import ParlaiParser

    _write_dictionary(generator, words, Path(f"{path}.dict"))
    options = {**generator.options, "bpe_add_prefix_space": prefix_space}
    opt = ParlaiParser(True, True).parse_kwargs(**options, dict_file=f"{path}.dict", no_cuda=True)
    dictionary = DictionaryAgent(opt)
    wanted = generator.symbols
    if len(dictionary) != len(wanted) or any(dictionary[i] != symbol for i, symbol in enumerate(wanted)):
        raise SafetyError(
            f"ParlAI reads {len(dictionary)} words from a dictionary of {len(wanted)}, or others",
            "A word has a name there that ParlAI keeps for itself, such as __end__ or a backslash with n",
            "Rename that line of dict.txt; the model does not see names",
        )
    # Without memory: only names and shapes are compared.
    with torch.device("meta"):
        state = TransformerGeneratorModel(opt, dictionary).state_dict()
    _check_shapes({name: tuple(weight.shape) for name, weight in state.items()}, generator.weights)
    torch.save({"model": generator.weights}, path)
    kept = {name: value for name, value in opt.items() if name not in _OF_THIS_MACHINE}
    write_json(f"{path}.opt", {**kept, "no_cuda": False})


def _write_dictionary(generator: Generator, words: Words, path: Path) -> None:
    write_text(path, "".join(f"{symbol}\t1\n" for symbol in generator.symbols))
    if words.merges is not None:
        tokens = {symbol: i for i, symbol in enumerate(generator.symbols[UNK + 1 :])}
        write_text(f"{path}-vocab.json", json.dumps(tokens, ensure_ascii=False))
        write_text(f"{path}-merges.txt", "\n".join(["#version: 0.2", *words.merges]) + "\n")


def _check_shapes(wanted: dict[str, tuple[int, ...]], weights: dict[str, Any]) -> None:
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    wrong = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise SafetyError(
            f"The weights for {name} have the shape {found.get(name)}, and the settings of the checkpoint say "
            f"{wanted.get(name)}",
            f"The settings do not describe these weights: {len(wrong)} differ",
            "Import a checkpoint that fairseq-train saved, with the settings of this very model",
        )


def _write_folder(model: LanguageModel, words: Words, folder: Path, prefix_space: bool) -> None:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise SafetyError(
            "The package transformers is not installed",
            "A language model of fairseq becomes a folder in the layout of that package",
            "Install it with: pip install 'parlai_safety[hf]'",
        ) from error
    import torch

    config = transformers.OPTConfig(**model.config)
    with torch.device("meta"):
        built = transformers.OPTForCausalLM(config)
    wanted = {name: tuple(weight.shape) for name, weight in built.state_dict().items()}
    if config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    _check_shapes(wanted, model.weights)
    config.dtype = model.weights["model.decoder.embed_tokens.weight"].dtype
    config.architectures = ["OPTForCausalLM"]
    folder.mkdir()
    _save_weights(model, folder)
    config.save_pretrained(folder)
    text = tokenizer_json(words, start=model.config["bos_token_id"], prefix_space=prefix_space)
    from tokenizers import Tokenizer

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text),
        bos_token=words.symbols[model.config["bos_token_id"]],
        pad_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        unk_token=SPECIAL[3],
        model_max_length=model.config["max_position_embeddings"],
    )
    tokenizer.save_pretrained(folder)


def _save_weights(model: LanguageModel, folder: Path) -> None:
    from safetensors.torch import save_file

    weights = {name: weight.contiguous() for name, weight in model.weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SafetyError(
            f"The folder {str(folder)!r} cannot be made ({error.strerror})",
            "The imported model is to stand in it",
            "Name another --out",
        ) from error


def _move_files(source: Path, out: Path) -> None:
    if out.is_dir():
        raise SafetyError(
            f"{str(out)!r} is a folder",
            "A ParlAI model becomes a file with others beside it, and a folder is not replaced by them",
            "Name a file, as in --out models/imported/model",
        )
    # The model file itself comes last: where it stands, everything beside it does.
    for path in sorted(source.iterdir(), key=lambda path: path.name == out.name):
        os.replace(path, out.parent / path.name)


def _move_folder(temporary: Path, out: Path) -> None:
    if out.is_symlink() or out.is_file():
        raise SafetyError(
            f"{str(out)!r} is a file or a link",
            "A language model becomes a folder",
            "Name a folder that is not there yet",
        )
    if out.is_dir():
        found, written = ({path.name for path in folder.iterdir()} for folder in (out, temporary / out.name))
        if found and not {"config.json", "model.safetensors"} <= found <= written:
            raise SafetyError(
                f"The folder {str(out)!r} holds {', '.join(sorted(found)[:5])}",
                "Only the folder of an earlier import is replaced, with no other files in it",
                "Name a folder that is not there yet",
            )
        out.rename(temporary / "before")
    shutil.move(temporary / out.name, out)


def _count(weights: dict[str, Any]) -> int:
    return sum({weight.data_ptr(): weight.numel() for weight in weights.values()}.values())
