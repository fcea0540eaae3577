"""Causal language models of transformers as a backbone of ParlAI's agents: put a method before `CausalBackbone`.

Dictionary, history and model stand in ParlAI's places, so that its training loop, interactive mode, self-chat and
evaluation work as with any generator. The history keeps who said what, and the chat template makes the prompt of it.

Left out: ParlAI's sharded training (`--ddp-backend zero2`, `zero3`), its `--fp16` and its model parallelism; models
beyond one card are trained through `parlai_safety.integrations.trl`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from parlai.core.dict import DictionaryAgent
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.core.torch_agent import Batch, History
from parlai.core.torch_generator_agent import TorchGeneratorAgent

from parlai_safety.agents.control import token_names
from parlai_safety.agents.generation import why_not
from parlai_safety.errors import SafetyError
from parlai_safety.message import control_token
from parlai_safety.modeling.causal_lm import CausalLM
from parlai_safety.modeling.chat import ChatFormat, Turn, as_turns
from parlai_safety.modeling.control import add_row
from parlai_safety.modeling.hf import (
    DTYPES,
    LoraSettings,
    add_lora,
    add_special_token,
    checkpoint_layers,
    fingerprint,
    load_lm,
    need_flash,
    pack,
    read_source,
    same_weights,
    unpack,
)
from parlai_safety.options import add_options, option, options_from

ADAPTERS_ONLY = "checkpointholds_adapters_only"
"""Says in the `.opt` beside a checkpoint whether the base weights are to be had from `--hf-model` alone."""
_LM = "lm."
"""What the names of the language model's own weights begin with in a checkpoint."""
NULL, START = "__null__", "__start__"
"""Tokens of ParlAI that the model's vocabulary lacks. Their ids follow its last one; the model never sees them."""
REFUSED = {
    "fp16": "--dtype bf16",
    "model_parallel": "parlai_safety.integrations.trl",
    "person_tokens": "--chat-template, which says who speaks",
    "history_reversed": "the history in its order",
    "split_lines": "the history as it is: its lines are turns already",
    "history_add_global_end_token": "--chat-template, which says where turns end",
}
"""Options of ParlAI that cannot count here, and what does their work."""


@dataclass(frozen=True)
class CausalOptions:
    """Which model, and how it is held and computed."""

    hf_model: str = option("", "A causal language model: its name on the Hugging Face hub, or its folder.")
    hf_random: bool = option(False, "Begin with random weights of that model's config, not with its own.")
    chat_template: str = option(
        "tokenizer",
        "How turns become a prompt: the tokenizer's chat template (tokenizer), lines (plain), or a Jinja file's path.",
    )
    system_prompt: str = option("", "System prompt before every conversation; empty = none.")
    dtype: str = option(
        "fp32",
        "Type of the computation; weights that are trained stay fp32, all others are held in that type.",
        choices=tuple(DTYPES),
    )
    attn: str = option(
        "auto",
        "Kernel of the model's attention; auto = the one that transformers chooses for it.",
        choices=("auto", "sdpa", "eager", "flash_attention_2"),
    )
    gradient_checkpointing: bool = option(False, "Compute the layers again in backward, which saves memory.")
    lora_rank: int = option(0, "Rank of low-rank adapters, which alone are trained; 0 = train all weights.", low=0)
    lora_alpha: float | None = option(
        None, "Adapters are scaled by this over the rank; left out, twice the rank.", low=0
    )
    lora_dropout: float = option(0.0, "Dropout before the adapters.", low=0, high=0.99)
    lora_targets: str = option(
        "all-linear", "Layers that get adapters: names with commas between them, or all but the output layer."
    )
    load_4bit: bool = option(False, "Hold the frozen weights in four bits, by bitsandbytes.")


class CausalDictionary(DictionaryAgent):
    """A tokenizer of transformers, with its chat format, where ParlAI expects a dictionary."""

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        self.opt = opt
        options = options_from(opt, CausalOptions)
        # A run that begins from a checkpoint has no file of its own yet.
        files = (opt.get("dict_file"), f"{opt.get('init_model')}.dict")
        file = next((file for file in files if file and Path(file).is_file()), None)
        if file:
            tokenizer, self.config = unpack(file)
        else:
            tokenizer, self.config = read_source(options.hf_model)
        self._read(tokenizer)
        self.null_token, self.start_token = NULL, START
        self.tokenizer, self.lower, self.minfreq = "hf", False, 0
        self.additional_special_tokens: list[str] = []

    def _read(self, tokenizer: Any) -> None:
        """Take over what a tokenizer and the config say."""
        options = options_from(self.opt, CausalOptions)
        self.format = ChatFormat(tokenizer, template=options.chat_template, system=options.system_prompt)
        self._scores = int(self.config.get_text_config().vocab_size)
        size = max(len(tokenizer), self._scores)
        spelled = {id_: token for token, id_ in tokenizer.get_vocab().items()}
        talk = [Turn("user", "Hi."), Turn("assistant", "Hello."), Turn("user", "Bye.")]
        used = {*self.format.prompt(talk), *self.format.reply("Bye."), self.format.end}
        unused = set(self.format.special_ids) - used
        strange = sorted(spelled[id_] for id_ in spelled.keys() - unused if id_ >= self._scores)
        if strange:
            raise SafetyError(
                f"The tokenizer has the token {strange[0]!r}, and the model has no embedding for it",
                f"The model knows {self._scores} tokens, and a text with that one could not be read",
                "Enlarge the model's embeddings (resize_token_embeddings), and save model and tokenizer in one folder",
            )
        self.ind2tok = {id_: spelled.get(id_, f"__unused_{id_}__") for id_ in range(size)}
        self.tok2ind = {token: id_ for id_, token in self.ind2tok.items()}
        self.end_token = self.ind2tok[self.format.end]
        self.unk_token = tokenizer.unk_token or self.end_token
        self._unk_token_idx = self.tok2ind[self.unk_token]
        self._beyond = {NULL: size, START: size + 1}
        ends = self.config.get_text_config().eos_token_id
        known = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {self.format.end, None}
        self.also_end = sorted(int(id_) for id_ in known if id_ < self._scores)
        self.freq = dict.fromkeys(self.tok2ind, 1)

    @property
    def blank(self) -> int:
        """An id that stands where there is no text at all: the tokenizer's first token, else its end."""
        begin = self.format.tokenizer.bos_token_id
        return int(self.format.end if begin is None or begin >= self._scores else begin)

    def is_prebuilt(self) -> bool:
        """It is never built from a task's text."""
        return True

    def __len__(self) -> int:
        """Scores that the model gives, which may be more or less than the tokenizer has tokens."""
        return self._scores

    def __getitem__(self, key: Any) -> Any:
        """Token by id, or id by token."""
        if isinstance(key, str):
            return self._beyond.get(key, self.tok2ind.get(key, self._unk_token_idx))
        return self.ind2tok.get(int(key), NULL)

    def __setitem__(self, key: str, value: int) -> None:
        """Refuse: the model has an embedding for the tokens that it has."""
        raise SafetyError(
            f"The token {key!r} was to be added to the tokenizer of a causal language model",
            "The model has embeddings for its own tokens alone",
            "Leave out the option that adds it, such as --person-tokens or --fp16",
        )

    def add_additional_special_tokens(self, additional_special_tokens: list[str]) -> None:
        """Add control tokens, as special tokens behind all others; refuse any other, see `__setitem__`.

        The config's vocabulary grows with them where the model has no unused rows for them.
        """
        known = {control_token(name) for name in token_names(self.opt.get("control_tokens"))}
        for token in additional_special_tokens:
            if token not in known:
                self[token] = 1
        tokenizer, text = self.format.tokenizer, self.config.get_text_config()
        ids = [add_special_token(tokenizer, token) for token in additional_special_tokens]
        text.vocab_size = max(self._scores, max(ids) + 1)
        self._read(tokenizer)
        self.additional_special_tokens = list(additional_special_tokens)

    def txt2vec(self, text: str, vec_type: Any = list) -> Any:
        """The tokens of a reply, as the template frames it."""
        return vec_type(self.format.reply(text))

    def vec2txt(self, vector: Any, delimiter: str = " ") -> str:
        """The words of a reply's tokens."""
        return self.format.text([int(id_) for id_ in vector])

    def save(self, filename: str | None = None, append: bool = False, sort: bool = True) -> None:
        """Write tokenizer and config as one file."""
        pack(filename or self.opt["dict_file"], self.format.tokenizer, self.config)

    def act(self) -> dict[str, Any]:
        """Nothing is learned from a task's text."""
        return {}


class ChatHistory(History):
    """ParlAI's history with the role of every turn.

    The lines of a message that opens a conversation are turns, see `as_turns`: the last one is the user's, those before
    it alternate, so whoever writes the first message of a live talk may write the assistant's part of its beginning. A
    later message is one turn of the user's. White space alone is a turn without words. What the agent says, or the
    label in its place, is the assistant's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._messages: list[list[Turn]] = []
        self._known: tuple[list[Turn], list[int], int] | None = None
        super().__init__(*args, **kwargs)

    @property
    def turns(self) -> list[Turn]:
        """The conversation so far, oldest first."""
        return [turn for message in self._messages for turn in message]

    def parse(self, text: str) -> list[int]:
        """Nothing: the prompt is made of all turns at once."""
        return []

    def reset(self) -> None:
        """Forget the conversation."""
        super().reset()
        self._messages = []

    def update_history(self, obs: Message, temp_history: str | None = None) -> None:
        """Remember a message."""
        super().update_history(obs, temp_history)
        text = obs.get(self.field) or ""
        self._add([Turn("user", text)] if self._messages and text else as_turns(text))

    def add_reply(self, text: str) -> None:
        """Remember the agent's own words."""
        super().add_reply(text)
        self._add([Turn("assistant", text)])

    def get_history_vec(self) -> list[int]:
        """The prompt of the conversation, within `maxlen` tokens."""
        return self.prompt()[0]

    def prompt(self) -> tuple[list[int], int]:
        """The prompt within `maxlen` tokens, and how many tokens the whole one has."""
        turns = self.turns
        if self.temp_history is not None and turns:
            turns[-1] = Turn(turns[-1].role, turns[-1].text + self.temp_history)
        if self._known is None or self._known[0] != turns:
            ids = self.dict.format.prompt(turns)
            whole = len(ids)
            if self.max_len is not None and whole > self.max_len:
                ids = self.dict.format.prompt(turns, limit=self.max_len)
            self._known = turns, ids, whole
        return self._known[1:]

    def words(self) -> list[int]:
        """The tokens of what was said, without any frame, with padding between the turns."""
        return [id_ for turn in self.turns for id_ in (*self.dict.format.words(turn.text), self.dict[NULL])]

    def _add(self, turns: list[Turn]) -> None:
        if any(turn.role == "user" or turn.text.strip() for turn in turns):
            self._messages.append(turns)
        if self.size > 0:
            self._messages = self._messages[-self.size :]


class CausalBackbone(TorchGeneratorAgent):
    """Any `AutoModelForCausalLM` as a `TorchGeneratorAgent`; a method's mixin stands before it.

    A control token of `parlai_safety.agents.control` is a special token of the tokenizer and one more row of the
    embeddings. With adapters that row is frozen as all others are: the adapters learn to react to what it is.
    """

    takes_token = True

    @property
    def control_room(self) -> int:
        """Control tokens that a prompt may end with; a method's mixin knows them."""
        return 0

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add ParlAI's flags for generators and those of `CausalOptions`."""
        super().add_cmdline_args(parser, partial_opt)
        add_options(parser, CausalOptions, "Causal language model")
        parser.set_defaults(label_truncate=128, learningrate=1e-5, optimizer="adamw")
        return parser

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        self.causal = options_from(opt, CausalOptions)
        self._base_print: dict[str, list[float]] | None = None
        for name, instead in REFUSED.items():
            if opt.get(name):
                raise SafetyError(
                    f"--{name.replace('_', '-')} got {opt[name]}",
                    f"{type(self).__name__} holds a model of transformers, where this option has no meaning",
                    f"Leave it out; {instead} is what there is instead",
                )
        if opt.get("delimiter", "\n") != "\n":
            raise SafetyError(
                f"--delimiter got {opt['delimiter']!r}",
                "Turns are told from each other by the lines of a message, and joined by the chat template",
                "Leave it out, and give a task whose turns are lines",
            )
        super().__init__(opt, shared)
        if shared is not None:
            self._base_print = shared["base_print"]
        else:
            self._generator.check_causal()
        self._check_search()

    @staticmethod
    def dictionary_class() -> type[CausalDictionary]:
        """The tokenizer."""
        return CausalDictionary

    @staticmethod
    def history_class() -> type[ChatHistory]:
        """Turns with roles."""
        return ChatHistory

    @property
    def also_end(self) -> list[int]:
        """Tokens that end a reply beside the template's own, such as the end of a document."""
        found: list[int] = self.dict.also_end
        return found

    def share(self) -> dict[str, Any]:
        """ParlAI's share, and what the base weights are told by."""
        return {**super().share(), "base_print": self._base_print}

    def build_model(self) -> CausalLM:
        """The model with its adapters; weights of a checkpoint are loaded afterwards, by ParlAI."""
        options = self.causal
        trained = self._should_initialize_optimizer()
        dtype = DTYPES[options.dtype]
        if trained and not options.lora_rank and options.load_4bit:
            raise SafetyError(
                "--load-4bit got true without adapters",
                "Weights of four bits are frozen, so there would be nothing to train",
                "Give --lora-rank 16 beside it, or leave --load-4bit out",
            )
        if trained and dtype == torch.float16:
            raise SafetyError(
                "--dtype got fp16 in training",
                "Gradients of half precision vanish without a scaling of the loss, which is not here",
                "Give --dtype bf16, which has the range of fp32",
            )
        if options.attn == "flash_attention_2":
            need_flash(dtype)
        whole = trained and not options.lora_rank  # all weights are trained, and stay fp32
        if options.lora_rank and options.lora_alpha == 0:
            raise SafetyError(
                "--lora-alpha got 0",
                "Adapters are scaled by it, so that nothing could be learned",
                "Leave it out for twice the rank, or give a number above 0",
            )
        source = None if self._goes_on_from_whole() or options.hf_random else options.hf_model
        tokens = self.dict.additional_special_tokens
        words, config = None, self.dict.config
        if source is not None and tokens:  # the source has the vocabulary that it has
            words, config = read_source(source)
        lm = load_lm(
            source,
            config,
            dtype=torch.float32 if whole else dtype,
            attention=None if options.attn == "auto" else options.attn,
            four_bit=options.load_4bit,
        )
        if options.lora_rank and source is not None:
            self._base_print = fingerprint(lm)
        known = words.get_vocab() if words is not None else tokens
        for token in tokens:
            if token not in known:
                add_row(lm, self.dict.tok2ind[token], token)
        if options.lora_rank:
            add_lora(lm, LoraSettings(options.lora_rank, self._alpha, options.lora_dropout, options.lora_targets))
        self.opt[ADAPTERS_ONLY] = self._base_print is not None
        if options.gradient_checkpointing:
            checkpoint_layers(lm)
        return CausalLM(
            lm,
            null=self.NULL_IDX,
            start=self.START_IDX,
            end=self.END_IDX,
            blank=self.dict.blank,
            compute=None if dtype == torch.float32 else dtype,
        )

    def state_dict(self) -> dict[str, Any]:
        """What is saved: adapters alone where all else is `--hf-model`'s, with what its weights are told by.

        No tensor says how adapters are scaled, so that is kept beside them.
        """
        states: dict[str, Any] = super().state_dict()
        if self.causal.lora_rank:
            states["lora_alpha"] = self._alpha
        if self._base_print is not None:
            learned = self._learned()
            states["model"] = {name: value for name, value in states["model"].items() if name in learned}
            states["base"] = {"hf_model": self.causal.hf_model, "fingerprint": self._base_print}
        return states

    def load(self, path: str) -> dict[str, Any]:
        """Load a checkpoint; adapters only upon the weights that they were trained upon, and scaled as they were.

        Raises:
            SafetyError: the base weights or the scale are others, or names and shapes do not fit.
        """
        states: dict[str, Any] = super().load(path)
        base = states.get("base")
        if base is not None and not same_weights(base["fingerprint"], self._base_print or {}):
            raise SafetyError(
                f"{path} holds adapters that were trained upon {base['hf_model']!r}",
                f"The weights of {self.causal.hf_model!r} are others now, and adapters mean nothing upon them",
                "Give --hf-model with the model that the adapters were trained upon",
            )
        alpha = states.get("lora_alpha")  # absent where all weights were trained
        if alpha not in (None, self._alpha):
            raise SafetyError(
                f"--lora-alpha is {self._alpha:g} here, and {path} holds adapters that were trained with {alpha:g}",
                "It scales what they learned, so that with another one the model would be another",
                f"Give --lora-alpha {alpha:g}, or leave --init-model out to train new adapters",
            )
        return states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load all weights, or adapters alone, or all weights under new adapters."""
        has_adapters = any("lora_" in name for name in state_dict)
        own = self.model.state_dict()
        if has_adapters and not self.causal.lora_rank:
            raise SafetyError(
                "The checkpoint holds low-rank adapters, and --lora-rank is 0",
                "Adapters are loaded beside the layers that they change, and here there is no place for them",
                "Give --lora-rank as it was, or export the model with its adapters merged (parlai safety_export) and "
                "give that folder as --hf-model",
            )
        if has_adapters and not any(name.startswith(_LM) and "lora_" not in name for name in state_dict):
            missing, unexpected = self.model.load_state_dict(state_dict, strict=False)
            wrong = [*self._learned().intersection(missing), *unexpected]
            if wrong:
                raise RuntimeError(f"Adapters differ:\n{wrong[0]} is in the model or in the checkpoint, not in both")
            return
        if not has_adapters and self.causal.lora_rank:
            # Weights of --init-model become the base: a layer with adapters keeps them one level deeper.
            names = {name.replace(".base_layer.", "."): name for name in own}
            state_dict = {names.get(name, name): value for name, value in state_dict.items()}
            state_dict.update({name: value for name, value in own.items() if "lora_" in name})
        super().load_state_dict(state_dict)

    def _learned(self) -> set[str]:
        """The names of the parameters that are trained."""
        return {name for name, parameter in self._generator.named_parameters() if parameter.requires_grad}

    @property
    def _generator(self) -> CausalLM:
        """The model, out of its data-parallel wrapper."""
        wrapped: Any = self.model
        model: CausalLM = getattr(wrapped, "module", wrapped)
        return model

    @property
    def _alpha(self) -> float:
        """The scale of the adapters, times their rank."""
        return 2.0 * self.causal.lora_rank if self.causal.lora_alpha is None else self.causal.lora_alpha

    def _goes_on_from_whole(self) -> bool:
        """Whether ParlAI will load a checkpoint with all weights, whose origin then is this model's too.

        Raises:
            SafetyError: `--hf-model` names another origin.
        """
        path, _ = self._get_init_model(self.opt, None)
        if path is None or holds_adapters_only(path):
            return False
        named, origin = self.causal.hf_model, _opt_of(path).get("hf_model") or ""
        if named not in ("", origin):
            raise SafetyError(
                f"--hf-model got {named!r}, and {path} was begun from {origin!r}",
                "All weights and the tokenizer are those of the checkpoint, so nothing of --hf-model would be used",
                "Leave --hf-model out to go on from the checkpoint, or begin anew without it",
            )
        self.opt["hf_model"] = origin
        return True

    def build_history(self) -> ChatHistory:
        """The history, whose prompts leave room for a reply."""
        text = self.dict.config.get_text_config()
        names = ("max_position_embeddings", "n_positions", "max_seq_len")  # the last one is MPT's
        positions = next((size for size in (getattr(text, name, None) for name in names) if size), None)
        if positions:
            reply = self.label_truncate or 256  # as ParlAI's generators have it
            if self.text_truncate is None:
                self.text_truncate = max(1, positions - reply)
            if self.text_truncate + reply > positions:
                raise SafetyError(
                    f"--text-truncate got {self.text_truncate} and --label-truncate {reply}",
                    f"The model has {positions} positions for prompt and reply together",
                    f"Give for example --text-truncate {max(1, positions - min(reply, positions // 2))} "
                    f"--label-truncate {min(reply, positions // 2)}",
                )
        history: ChatHistory = super().build_history()
        if history.max_len is not None:
            history.max_len -= self.control_room
        return history

    text_truncate: int | None

    def _set_text_vec(self, obs: Message, history: ChatHistory, truncate: int | None) -> Message:
        """ParlAI's, with what the history itself has cut off, and with the words that may be blocked as n-grams."""
        found: Message = super()._set_text_vec(obs, history, truncate)
        if obs.get("full_text_vec") is not None:
            ids, whole = history.prompt()
            obs.force_set("context_original_length", whole)
            obs.force_set("context_truncate_rate", whole > len(ids))
            obs.force_set("context_truncated_length", whole - len(ids))
            if self.beam_context_block_ngram > 0:
                obs.force_set("full_text_vec", history.words())
        return found

    def _get_batch_context(self, batch: Batch) -> torch.Tensor:
        """The tokens whose n-grams are blocked: no special token, which would never end a reply."""
        context: torch.Tensor = super()._get_batch_context(batch)
        special = torch.tensor(self.dict.format.special_ids, device=context.device)
        return context.masked_fill(torch.isin(context, special), self.NULL_IDX)

    def rank_eval_label_candidates(self, batch: Batch, batchsize: int) -> tuple[list[list[str]], list[list[float]]]:
        """Candidates of each example by the mean -log p of their tokens; ParlAI's own looks up the score of padding."""
        model = self._generator
        prompts = model.encoder(*self._encoder_input(batch))
        choices, found = [], []
        for row, texts in enumerate(batch.candidates):
            ids = self._pad_tensor(batch.candidate_vecs[row], is_label=True)[0].to(prompts.device)
            mask = ids != self.NULL_IDX
            logits, _ = model.decode_forced(model.reorder_encoder_states(prompts, [row] * len(ids)), ids)
            nll = F.cross_entropy(logits[mask].float(), ids[mask], reduction="none")
            means = nll.new_zeros(mask.shape).masked_scatter(mask, nll).sum(1) / mask.sum(1)
            scores, order = means.sort()
            choices.append([texts[place] for place in order])
            found.append(scores.tolist())
        return choices, found

    def _load_beam_block_list(self) -> Any:
        """ParlAI's list of phrases, each in the tokens at a reply's beginning and in those behind another word."""
        listed = super()._load_beam_block_list()
        words = self.dict.format.words
        spelled = {tuple(words(phrase, inside=inside)) for phrase in listed._phrases for inside in (False, True)}
        listed._phrase_ngrams = {}
        for ngram in sorted(spelled - {()}):
            listed._phrase_ngrams.setdefault(len(ngram), []).append(list(ngram))
        return listed

    def _check_search(self) -> None:
        """Refuse what ParlAI's own search cannot do with ids beyond the vocabulary."""
        if self.beam_block_ngram != 1 and self.beam_context_block_ngram <= 0:
            return
        reason = "--generation parlai" if self.opt.get("generation") == "parlai" else why_not(self)
        if reason is not None:
            raise SafetyError(
                f"--beam-block-ngram 1 or --beam-context-block-ngram came with ParlAI's own search ({reason})",
                "It looks up the scores of padding and of the start token, for which this model has none",
                "Leave out what asks for ParlAI's search, or the blocking of n-grams",
            )


def holds_adapters_only(path: str) -> bool:
    """Whether a checkpoint says so in its `.opt`."""
    return bool(_opt_of(path).get(ADAPTERS_ONLY, False))


def _opt_of(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"{path}.opt").read_text(encoding="utf-8"))
    return found
