"""`-m safety:hf_classifier`: any sequence classifier of transformers as a judge that is trained with ParlAI.

`--hf-classifier` names a model of the hub or a folder: an encoder, which gets a new layer of classes on top, or a
classifier with the classes of `--classes`. Tasks, metrics, early stopping, class weights, checkpoints and the number of
turns are those of `-m safety:judge`. Beside the model file M the best model is saved for transformers too, in the
folder M.hf; `parlai:M` and `hf:M.hf` are the same judge, because both read text with the encoder of
`parlai_safety.judges.hf`.

Left out: adapters, weights in less than 32 bits, and models that are too big for one card.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from parlai.core.dict import DictionaryAgent
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.core.torch_agent import Batch, History
from parlai.core.torch_classifier_agent import TorchClassifierAgent

from parlai_safety.agents.classifiers import TurnsMixin
from parlai_safety.agents.common import SafetyAgentMixin
from parlai_safety.errors import SafetyError
from parlai_safety.judges.hf import TurnEncoder, import_transformers, input_names, readable_length
from parlai_safety.modeling.hf import pack, unpack, without_bars
from parlai_safety.options import add_options, option, options_from

NULL, START = "__null__", "__start__"
"""Tokens of ParlAI; their ids follow the tokenizer's last one, and the model never sees them."""


@dataclass(frozen=True)
class HfClassifierOptions:
    """Which model, and how it reads the turns."""

    hf_classifier: str = option("", "A model of transformers: its name on the Hugging Face hub, or its folder.")
    hf_join: str = option(
        "pair",
        "How the context stands before the reply: apart, by the tokenizer's separator (pair), or as lines (newline).",
        choices=("pair", "newline"),
    )


class HfDictionary(DictionaryAgent):
    """A tokenizer and a config of transformers where ParlAI expects a dictionary."""

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        self.opt = opt
        files = (opt.get("dict_file"), f"{opt.get('init_model')}.dict")
        file = next((file for file in files if file and Path(file).is_file()), None)
        self.words, self.config = unpack(file) if file else _source(options_from(opt, HfClassifierOptions))
        self.tok2ind = dict(self.words.get_vocab())
        self.ind2tok = {number: token for token, number in self.tok2ind.items()}
        size = max(self.ind2tok, default=-1) + 1
        for number, token in enumerate((NULL, START), size):
            self.tok2ind[token], self.ind2tok[number] = number, token
        self.null_token, self.start_token, self.end_token = NULL, START, START
        self.unk_token = self.words.unk_token or NULL
        self._unk_token_idx = self.tok2ind[self.unk_token]
        self.tokenizer, self.lower, self.minfreq = "hf", False, 0
        self.freq = dict.fromkeys(self.tok2ind, 1)
        self.additional_special_tokens: list[str] = []

    def is_prebuilt(self) -> bool:
        """It is never built from a task's text."""
        return True

    def txt2vec(self, text: str, vec_type: Any = list) -> Any:
        """The tokens of a text, without special ones."""
        return vec_type(self.words(text, add_special_tokens=False, verbose=False)["input_ids"])

    def vec2txt(self, vector: Any, delimiter: str = " ") -> str:
        """The words of tokens."""
        return str(self.words.decode([int(number) for number in vector if int(number) < len(self.words)]))

    def save(self, filename: str | None = None, append: bool = False, sort: bool = True) -> None:
        """Write tokenizer and config as one file."""
        pack(filename or self.opt["dict_file"], self.words, self.config)

    def act(self) -> dict[str, Any]:
        """Nothing is learned from a task's text."""
        return {}


class HfClassifierAgent(SafetyAgentMixin, TurnsMixin, TorchClassifierAgent):
    """`AutoModelForSequenceClassification` as a `TorchClassifierAgent`."""

    backbone = TorchClassifierAgent

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add ParlAI's flags for classifiers and ours, and set this agent's defaults."""
        super().add_cmdline_args(parser, partial_opt)
        add_options(parser, HfClassifierOptions, "Classifier of transformers")
        parser.set_defaults(learningrate=2e-5, optimizer="adamw", truncate=256)
        return parser

    @staticmethod
    def dictionary_class() -> type[HfDictionary]:
        """The tokenizer."""
        return HfDictionary

    def build_model(self) -> torch.nn.Module:
        """The model with one output a class: as it was published, or empty where a checkpoint follows."""
        settings, config = options_from(self.opt, HfClassifierOptions), self.dict.config
        self._check_classes(config)
        config.id2label = dict(enumerate(self.class_list))
        config.label2id = dict(self.class_dict)
        config.problem_type = "single_label_classification"
        config.safety_judge = {"context_turns": self.opt["context_turns"], "join": settings.hf_join}
        if config.pad_token_id is None:  # decoders look for the last token that is no padding
            config.pad_token_id = self._padding
        limit = self.text_truncate if self.text_truncate and self.text_truncate > 0 else None
        length = readable_length(config, self.dict.words, limit)
        self.dict.words.model_max_length = length  # the folder for transformers reads what was read in training
        auto = import_transformers().AutoModelForSequenceClassification
        if self._get_init_model(self.opt, None)[0]:
            model = auto.from_config(config)
        else:
            with _explained(settings.hf_classifier):
                model = auto.from_pretrained(
                    settings.hf_classifier, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
                )
        self.encoder = TurnEncoder(
            self.dict.words,
            input_names(model),
            length,
            self.opt["context_turns"],
            settings.hf_join,  # type: ignore[arg-type]
        )
        built: torch.nn.Module = model
        return built

    def share(self) -> dict[str, Any]:
        """Share the encoder too."""
        return {**super().share(), "encoder": self.encoder}

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        super().__init__(opt, shared)
        if shared is not None:
            self.encoder = shared["encoder"]

    def batchify(self, obs_batch: list[Message], sort: bool = False) -> Batch:
        """ParlAI's batch, with the inputs of the model."""
        batch: Batch = super().batchify(obs_batch, sort=False)
        batch.encoded = [obs["encoded"] for obs in obs_batch if self.is_valid(obs)]
        return batch

    def score(self, batch: Batch) -> torch.Tensor:
        """One number a class, shape (batch, classes)."""
        rows: list[dict[str, list[int]]] = batch.encoded
        width = max(len(row["input_ids"]) for row in rows)
        inputs = {}
        for name in rows[0]:
            fill = self._padding if name == "input_ids" else 0
            inputs[name] = torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in rows])
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        inputs["attention_mask"] = (torch.arange(width)[None, :] < lengths[:, None]).long()
        device = next(self.model.parameters()).device
        logits: torch.Tensor = self.model(**{name: value.to(device) for name, value in inputs.items()}).logits
        return logits.float()

    def save(self, path: str | None = None) -> None:
        """ParlAI's; the model at its own place, not a checkpoint on the way, is saved for transformers too."""
        super().save(path)
        path = path or self.opt.get("model_file")
        if path and path == self.opt.get("model_file"):
            folder = f"{path}.hf"
            model = self.model.module if hasattr(self.model, "module") else self.model
            with without_bars():
                model.save_pretrained(folder)
            self.dict.words.save_pretrained(folder)

    def _set_text_vec(self, obs: Message, history: History, truncate: int | None) -> Message:
        """The model's inputs of the last turns, in place of ParlAI's."""
        turns = history.history_raw_strings
        if "text" in obs and turns and turns[-1].strip():
            [encoded] = self.encoder.encode([turns[-1]], [turns[:-1]])
            obs.force_set("encoded", encoded)
            obs.force_set("full_text", history.get_history_str())
            obs.force_set("text_vec", torch.LongTensor(encoded["input_ids"]))
        return obs

    @property
    def _padding(self) -> int:
        """What fills up a batch; it is masked."""
        words = self.dict.words
        known = (words.pad_token_id, words.eos_token_id, 0)
        return int(next(number for number in known if number is not None))

    def _check_classes(self, config: Any) -> None:
        """A classifier that has these classes in another order would begin upside down."""
        named = [str(config.id2label[number]) for number in range(config.num_labels)]
        if sorted(named) == sorted(self.class_list) and named != list(self.class_list):
            raise SafetyError(
                f"--classes got {' '.join(self.class_list)}, and the model has the classes {' '.join(named)}",
                "The outputs of the model stand in its own order, and would be taken for one another",
                f"Give --classes {' '.join(named)}",
            )


def _source(settings: HfClassifierOptions) -> tuple[Any, Any]:
    """Tokenizer and config of the model that the options name."""
    transformers = import_transformers()
    if not settings.hf_classifier:
        raise SafetyError(
            "-m safety:hf_classifier came without --hf-classifier",
            "The agent trains a model of transformers that exists",
            "Add --hf-classifier NAME_OR_FOLDER, for example --hf-classifier distilbert/distilroberta-base",
        )
    with _explained(settings.hf_classifier):
        return (
            transformers.AutoTokenizer.from_pretrained(settings.hf_classifier),
            transformers.AutoConfig.from_pretrained(settings.hf_classifier),
        )


@contextlib.contextmanager
def _explained(source: str) -> Iterator[None]:
    """Errors of transformers as ours."""
    try:
        with without_bars():
            yield
    except Exception as error:  # transformers has no common class of errors
        raise SafetyError(
            f"--hf-classifier got {source!r} ({type(error).__name__}: {' '.join(str(error).split())[:200]})",
            "It is a name on the Hugging Face hub, or a folder with config.json, a tokenizer and weights, and none "
            "could be loaded from there",
            "Check the name and the connection, or fetch it where there is a network with: hf download NAME "
            "--local-dir FOLDER",
        ) from error
