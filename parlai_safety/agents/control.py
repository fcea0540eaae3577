"""Control tokens in our agents: who has them, where they are honoured, and what keeps everybody else from them.

A token at the very end of the prompt, behind whatever opens the reply, says what the reply is to be like. Sources:

- "Recipes for Safety" (Xu et al. 2020, arXiv:2010.07079): SAFE or not by a judge, words of style, and whether a reply
  holds gendered words, learned behind tokens of their own (`--control-tokens safe,unsafe,f0m0`) and asked for when the
  model answers (`--control safe,f0m0`). The paper appends words to the text; that they are tokens is ours.
- Adversarial DPO (Kim and Lee 2024, arXiv:2405.12900, of which only the pipeline could be confirmed): with
  `--toxic-token true` a model holds an inner toxic model in the same weights, its replies behind `[TOXIC]`.

The tokens are put there as ids, after the text was cut and turned into ids, in the order of the model's own list:

- in losses, for examples whose message has a label and names them in `control`; while no training step is made, also
  those of `--control`, for messages that name none themselves;
- in replies and for candidates, those of `--control` alone, whatever a message says; the toxic one only with
  `--toxic-control true`, which is for research, or inside `toxic_control(agent)`.

What asks for unsafe replies (`--toxic-control true`, `--control unsafe`) counts from the command line alone and is
never saved; another `--control` of a training is saved with the model, as its other options of decoding are.

From every text, label and candidate their names and ids are taken out, and their scores are minus infinity wherever a
reply is searched for, so that they can be neither typed nor said. Left out: generators other than ParlAI's transformers
and causal language models.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from parlai.agents.transformer.transformer import TransformerGeneratorAgent
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.core.torch_agent import Batch
from parlai.utils import logging
from torch import Tensor

from parlai_safety.errors import SafetyError
from parlai_safety.message import FIELDS, TOXIC_TOKEN, control_names, control_token
from parlai_safety.modeling.control import (
    append_token,
    append_tokens,
    with_rows,
    without_id,
    without_token,
    without_tokens,
)
from parlai_safety.options import add_options, option, options_from

FLAG = "toxic_control"
TOXIC, NONE, UNSAFE = "toxic", "none", "unsafe"
AT_ONCE = 4
"""Names that a message or `--control` may have at once, the toxic one not counted."""
_TEXTS = ("text", "temp_history")
_LISTS = ("labels", "eval_labels", "label_candidates", "rejected", "toxic")
_IDS = ("text_vec", "full_text_vec", "labels_vec", "eval_labels_vec")


@dataclass(frozen=True)
class ControlOptions:
    """The control tokens, and whether replies are asked for behind the toxic one."""

    control_tokens: str = option(
        "",
        "Names of control tokens that the model has, with commas between them, as in safe,unsafe,f0m0; a checkpoint "
        "with tokens keeps them, and new ones come behind.",
    )
    toxic_token: bool = option(
        False,
        "The model has a toxic control token, behind which it learns examples with control toxic; a checkpoint with "
        "the token keeps it.",
    )
    toxic_control: bool = option(
        False, "Research only: answer as the inner toxic model. Counts from the command line, and is never saved."
    )


@dataclass(frozen=True)
class AskedOptions:
    """What replies are asked for."""

    control: str = option(
        "",
        "Names of control tokens behind which replies are asked for, as in safe,f0m0; none for none. Saved with a "
        "model that is trained with it, except for unsafe, which counts from the command line alone.",
    )


@dataclass
class _Switch:
    """What replies are asked for; an agent and its clones hold one.

    Attributes:
        on: whether behind the toxic token.
        names: of the other tokens, in any order.
    """

    on: bool
    names: tuple[str, ...] = ()


class ControlMixin:
    """Control tokens for a `TorchGeneratorAgent`: put this before its class."""

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the flags of `ControlOptions` and `AskedOptions`."""
        super().add_cmdline_args(parser, partial_opt)  # type: ignore[misc]
        add_options(parser, ControlOptions, "Control tokens")
        add_options(parser, AskedOptions, "What replies are asked for")
        return parser

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        if shared is None:
            asked = self._switch = _asked_for(opt)
            super().__init__(_without_unsafe(opt), shared)  # type: ignore[call-arg]
            self._need_asked("--toxic-control got true", f"--control got {','.join(asked.names)}")
            if asked.on:
                logging.warning(
                    "--toxic-control true: the model answers as its inner toxic model. This is for research alone, "
                    "such as making examples of what to avoid. Let nobody talk with it."
                )
            if UNSAFE in asked.names:
                logging.warning(
                    "--control unsafe: the model answers as in the replies that were found unsafe. This is for "
                    "research alone. Let nobody talk with it."
                )
            elif asked.names:
                logging.info(f"Replies are asked for behind {' '.join(map(control_token, asked.names))} (--control).")
        else:
            self._switch = shared[FLAG]
            super().__init__(opt, shared)  # type: ignore[call-arg]

    def _need_asked(self, toxic: str, names: str) -> None:
        """See that the model has the tokens that replies are asked for behind; the texts say how they were."""
        if self._switch.on:
            _need_token(self.toxic_id, toxic)
        self._named_ids(self._switch.names, names)

    @property
    def toxic_id(self) -> int | None:
        """The toxic token's id; None where the model has none."""
        found: int | None = self.dict.tok2ind.get(TOXIC_TOKEN)
        return found

    @property
    def control_ids(self) -> dict[str, int]:
        """The ids of the control tokens that the model has, by name and in the order in which they stand in a prompt.

        The toxic token, which stands behind them, is not among them.
        """
        names = token_names(self.opt.get("control_tokens"))
        return {name: self.dict.tok2ind[control_token(name)] for name in names if name != TOXIC}

    def share(self) -> dict[str, Any]:
        """ParlAI's share, and what clones are asked for."""
        return {**super().share(), FLAG: self._switch}  # type: ignore[misc]

    # --- dictionary and weights ---------------------------------------------------------------------------------------

    def build_dictionary(self) -> Any:
        """ParlAI's dictionary, with the tokens that are asked for or that the checkpoint has.

        Raises:
            SafetyError: this kind of agent or dictionary takes no further token, or a name cannot be one.
        """
        dictionary = super().build_dictionary()  # type: ignore[misc]
        options = options_from(self.opt, ControlOptions)
        begun_from, _ = self._get_init_model(self.opt, None)  # type: ignore[attr-defined]
        toxic = (TOXIC,) if options.toxic_token or TOXIC_TOKEN in dictionary.tok2ind else ()
        # In the order in which they came, as a dictionary's file may hold none of them: their ids follow from it.
        names = tuple(dict.fromkeys((*_names_of(begun_from), *token_names(options.control_tokens), *toxic)))
        if not names:
            return dictionary
        tokens = [control_token(name) for name in names]
        self.opt["control_tokens"] = ",".join(names)
        self.opt["toxic_token"] = TOXIC in names
        try:
            if not (isinstance(self, TransformerGeneratorAgent) or getattr(self, "takes_token", False)):
                raise NotImplementedError(f"a {type(self).__name__} has none")
            others = [token for token in self.special_toks if token not in tokens]
            dictionary.add_additional_special_tokens([*others, *tokens])
        except NotImplementedError as error:
            asked = "--toxic-token got true" if names == (TOXIC,) else f"--control-tokens got {','.join(names)}"
            raise SafetyError(
                f"{asked}, and the dictionary cuts text by {dictionary.tokenizer!r} "
                f"({' '.join(str(error).split())[:100]})",
                "The token is one more word of dictionary and model, which not every kind of them can take",
                "Use a transformer of ParlAI with --dict-tokenizer bytelevelbpe, gpt2, slow_bytelevel_bpe, re, split "
                "or space, or a causal language model (safety:causal_lm)",
            ) from error
        return dictionary

    def load(self, path: str) -> dict[str, Any]:
        """Load a checkpoint; one of a model without some tokens gets their rows, see `modeling.control.with_rows`."""
        known = {control_token(name) for name in _names_of(path)}
        self._new = {id_: token for token, id_ in self._tokens().items() if token not in known}
        try:
            states: dict[str, Any] = super().load(path)  # type: ignore[misc]
        finally:
            self._new = {}
        return states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load model parameters."""
        if self._new:
            state_dict = with_rows(state_dict, self.model, self._new)
            self.resized_embeddings = True  # by which ParlAI knows that a saved optimizer does not fit
        super().load_state_dict(state_dict)  # type: ignore[misc]

    def _tokens(self) -> dict[str, int]:
        """The ids of all control tokens, by what is written for them."""
        found = {control_token(name): id_ for name, id_ in self.control_ids.items()}
        return found if self.toxic_id is None else {**found, TOXIC_TOKEN: self.toxic_id}

    # --- nobody types it ----------------------------------------------------------------------------------------------

    def observe(self, observation: Any) -> Message:
        """ParlAI's, without a token's name in any text."""
        return super().observe(self._clean(observation))  # type: ignore[misc, no-any-return]

    def self_observe(self, self_message: Any) -> None:
        """ParlAI's, without a token's name in the reply."""
        super().self_observe(self._clean(self_message))  # type: ignore[misc]

    def _clean(self, message: Any) -> Any:
        if message is None or not self.unsaid:
            return message
        cleaned = Message(message)
        for name in _TEXTS:
            if isinstance(message.get(name), str):
                cleaned.force_set(name, self._unnamed(message[name]))
        for name in _LISTS:
            if FIELDS["rejected"].valid(message.get(name)):
                cleaned.force_set(name, [self._unnamed(text) for text in message[name]])
        return cleaned

    def _unnamed(self, text: str) -> str:
        """A text without the names of the model's tokens."""
        if self.toxic_id is not None:
            text = without_token(text)
        return without_tokens(text, [control_token(name) for name in self.control_ids])

    def _without_ids(self, ids: Any) -> Any:
        for token in self.unsaid:
            ids = without_id(ids, token)
        return ids

    def _set_text_vec(self, obs: Message, history: Any, truncate: int | None) -> Message:
        found: Message = super()._set_text_vec(obs, history, truncate)  # type: ignore[misc]
        self._strip(obs)
        return found

    def _set_label_vec(self, obs: Message, add_start: bool, add_end: bool, truncate: int | None) -> None:
        super()._set_label_vec(obs, add_start, add_end, truncate)  # type: ignore[misc]
        self._strip(obs)

    def _set_label_cands_vec(self, obs: Message, add_start: bool, add_end: bool, truncate: int | None) -> None:
        super()._set_label_cands_vec(obs, add_start, add_end, truncate)  # type: ignore[misc]
        if obs.get("label_candidates_vecs") is not None:
            obs.force_set("label_candidates_vecs", [self._without_ids(ids) for ids in obs["label_candidates_vecs"]])

    def _strip(self, obs: Message) -> None:
        for name in _IDS:
            if self.unsaid and obs.get(name) is not None:
                obs.force_set(name, self._without_ids(obs[name]))

    # --- where it is honoured -----------------------------------------------------------------------------------------

    def batchify(self, obs_batch: list[Any], sort: bool = False) -> Batch:
        """Add to ParlAI's batch behind which tokens labels are learned and scored.

        `control` (B,) bool says whose behind the toxic one, `control_ids` (B, N) int64 names the others, padded at the
        right; each is there where a message asks for such a token.

        Raises:
            SafetyError: a message with a label asks for a token that the model has not; or the field has no names.
        """
        batch: Batch = super().batchify(obs_batch, sort=sort)  # type: ignore[misc]
        if batch.batchsize and batch.label_vec is not None:
            asked = [self._asks(obs_batch[i]) for i in batch.valid_indices]
            if any(toxic for toxic, _ in asked):
                batch["control"] = torch.tensor([toxic for toxic, _ in asked])
            if any(ids for _, ids in asked):
                batch["control_ids"] = self._padded([ids for _, ids in asked])
        return batch

    def _asks(self, message: Any) -> tuple[bool, list[int]]:
        """Whether a message asks for the toxic token, and for which others."""
        control = message.get("control")
        if control is None or not ("labels" in message or "eval_labels" in message):
            return False, []
        where = f"a message of the task {message.get('id', '?')!r} has 'control' = {control!r}"
        names = control_names(control)
        if not names:
            raise SafetyError(
                where, f"This field holds {FIELDS['control'].kind}: {FIELDS['control'].meaning}", "Leave the field out"
            )
        if TOXIC in names:
            _need_token(self.toxic_id, where)
        return TOXIC in names, self._named_ids(tuple(name for name in names if name != TOXIC), where)

    def _named_ids(self, names: Sequence[str], got: str) -> list[int]:
        """The ids of some names, in the model's order."""
        own = self.control_ids
        unknown = [name for name in names if name not in own]
        if unknown:
            has = f"its control tokens are {', '.join(own)}" if own else "it has none"
            raise SafetyError(
                got,
                f"The model has no control token {control_token(unknown[0])}: {has}",
                f"Train with --control-tokens {','.join([*own, *unknown])} on a task whose messages name it, or leave "
                "this out",
            )
        if len(names) > AT_ONCE:
            raise SafetyError(
                got,
                f"At most {AT_ONCE} control tokens stand behind one prompt, so that room can be kept for them",
                "Name fewer of them",
            )
        return [id_ for name, id_ in own.items() if name in names]

    def _padded(self, rows: list[list[int]]) -> Tensor:
        width = max(map(len, rows))
        return torch.tensor([row + [self.NULL_IDX] * (width - len(row)) for row in rows], dtype=torch.int64)

    def _model_input(self, batch: Batch) -> Any:
        """What losses are computed of: examples with `control` behind their tokens, others behind what is asked for."""
        rows = batch.get("control")
        if self._switch.on and not batch.get("is_training"):
            rows = torch.ones(batch.batchsize, dtype=torch.bool)
        named = Batch(**{**batch, "text_vec": self.named_prompts(batch)})
        return super()._model_input(self._behind_toxic(named, rows))  # type: ignore[misc]

    def named_prompts(self, batch: Batch) -> Any:
        """The prompts (B, S) of the losses without the toxic token, which a frozen model reads too."""
        return self._behind_names(batch, () if batch.get("is_training") else self._switch.names).text_vec

    def _encoder_input(self, batch: Batch) -> Any:
        """What replies and candidates are found from: all prompts behind what is asked for, and nothing else."""
        if not self.unsaid:
            return super()._encoder_input(batch)  # type: ignore[misc]
        rows = torch.ones(batch.batchsize, dtype=torch.bool) if self._switch.on else None
        plain = Batch(**{name: value for name, value in batch.items() if name not in ("control", "control_ids")})
        given = self._behind_toxic(self._behind_names(plain, self._switch.names), rows)
        return super()._model_input(given)  # type: ignore[misc]

    def _behind_names(self, batch: Batch, asked: Sequence[str]) -> Batch:
        """A batch with its prompts behind the tokens of their own, or else behind those that are asked for.

        The toxic one is a message's own, too, and is not put there by this.
        """
        own, prompts = batch.get("control_ids"), batch.text_vec
        if prompts is None or (own is None and not asked):
            return batch
        tokens = prompts.new_full((len(prompts), 0), self.NULL_IDX) if own is None else own.to(prompts)
        if asked:
            wanted = prompts.new_tensor(self._named_ids(asked, "--control"))
            toxic = batch.get("control")
            named = (tokens != self.NULL_IDX).any(1)
            named = named if toxic is None else named | toxic.to(named)
            tokens = F.pad(tokens, (0, max(0, len(wanted) - tokens.size(1))), value=self.NULL_IDX)
            wanted = F.pad(wanted, (0, tokens.size(1) - len(wanted)), value=self.NULL_IDX)
            tokens = torch.where(named[:, None], tokens, wanted)
        rows = (tokens != self.NULL_IDX).any(1)
        grown = append_tokens(prompts, tokens, self.NULL_IDX, limit=self.prompt_limit)
        return self._with_prompts(batch, grown, rows)

    def _behind_toxic(self, batch: Batch, rows: Tensor | None) -> Batch:
        """A batch with the prompts of some rows behind the toxic token."""
        prompts, token = batch.text_vec, self.toxic_id
        if rows is None or token is None or prompts is None:
            return batch
        grown = append_token(prompts, token, self.NULL_IDX, limit=self.prompt_limit)
        return self._with_prompts(batch, grown, rows)

    def _with_prompts(self, batch: Batch, grown: Tensor, rows: Tensor) -> Batch:
        """A batch with other prompts in some rows (B,) bool; the others stay as they are."""
        prompts = batch.text_vec
        prompts = F.pad(prompts, (0, max(0, grown.size(1) - prompts.size(1))), value=self.NULL_IDX)
        grown = F.pad(grown, (0, prompts.size(1) - grown.size(1)), value=self.NULL_IDX)
        whole = torch.where(rows.to(prompts.device)[:, None], grown, prompts)
        return Batch(**{**batch, "text_vec": whole})

    @property
    def control_room(self) -> int:
        """Control tokens that a prompt may end with."""
        return min(AT_ONCE, len(self.control_ids)) + (self.toxic_id is not None)

    @property
    def prompt_limit(self) -> int | None:
        """Tokens of a prompt at most, control tokens counted; None for any number."""
        positions = getattr(getattr(getattr(self.model, "module", self.model), "encoder", None), "n_positions", None)
        return self.text_truncate if self.text_truncate is not None else positions

    # --- nobody says it -----------------------------------------------------------------------------------------------

    @property
    def unsaid(self) -> list[int]:
        """Ids whose score is minus infinity wherever a reply is searched for, see `agents.generation`."""
        return list(self._tokens().values())

    def _v2t(self, vec: Any) -> str:
        return self._unnamed(super()._v2t(vec))  # type: ignore[misc]

    _new: dict[int, str] = {}  # noqa: RUF012  replaced and never changed
    opt: Opt
    dict: Any
    model: Any
    special_toks: list[str]
    text_truncate: int | None
    NULL_IDX: int


@contextmanager
def toxic_control(agent: Any) -> Iterator[Any]:
    """Let an agent, and clones of it that are made inside, answer behind the toxic token; research only.

    Clones that were made before go on without it, and those made inside end with it.

    Args:
        agent: an agent of ours whose model has the token.

    Yields:
        The agent.

    Raises:
        SafetyError: it has none.
    """
    with _asked(agent, _Switch(True, _names_asked(agent)), _Switch(False, _names_asked(agent))):
        yield agent


@contextmanager
def reply_control(agent: Any, names: Sequence[str]) -> Iterator[Any]:
    """Let an agent, and clones of it that are made inside, answer behind other control tokens than `--control` names.

    Clones that were made before go on as they were, and those made inside do so afterwards.

    Args:
        agent: an agent of ours.
        names: of the tokens, such as ("safe", "f0m0"); none for none.

    Yields:
        The agent.

    Raises:
        SafetyError: its model has no such token.
    """
    toxic = isinstance(agent, ControlMixin) and agent._switch.on
    with _asked(agent, _Switch(toxic, tuple(names)), _Switch(toxic, _names_asked(agent))):
        yield agent


@contextmanager
def _asked(agent: Any, now: _Switch, then: _Switch) -> Iterator[None]:
    got = f"A reply of {type(agent).__name__} was asked for behind the control token"
    if not isinstance(agent, ControlMixin):
        raise SafetyError(
            got,
            "Only an agent that learns from replies can have the token, and not one that guides another one's replies",
            "Give the agent that was trained with --toxic-token true or --control-tokens itself",
        )
    before, agent._switch = agent._switch, now
    try:
        agent._need_asked(got, f"{got} {', '.join(now.names)}")
        yield
    finally:
        agent._switch, now.on, now.names = before, then.on, then.names


def _names_asked(agent: Any) -> tuple[str, ...]:
    return agent._switch.names if isinstance(agent, ControlMixin) else ()


@functools.lru_cache(maxsize=64)
def token_names(listed: str | None) -> tuple[str, ...]:
    """The names in `--control-tokens`; the toxic token's stands among them where the model has it.

    Args:
        listed: names with commas between them, in any case; white space around one does not count.

    Raises:
        SafetyError: what stands there is no name.
    """
    names = tuple(dict.fromkeys(name.strip().lower() for name in (listed or "").split(",") if name.strip()))
    wrong = [name for name in names if not control_names(name) or name == NONE]
    if wrong:
        raise SafetyError(
            f"--control-tokens or --control names {wrong[0]!r}",
            "A name begins with a letter from a to z, goes on with such letters, digits and _, and is not none, which "
            "asks for no token",
            "Write names with commas between them, such as safe,unsafe,f0m0",
        )
    return names


def _names_of(path: str | None) -> tuple[str, ...]:
    """The names of the control tokens of a checkpoint's model, if there is one."""
    file = Path(f"{path}.opt")
    if path is None or not file.is_file():
        return ()
    saved = json.loads(file.read_text(encoding="utf-8"))
    names = token_names(saved.get("control_tokens"))
    return (*names, TOXIC) if saved.get("toxic_token", False) and TOXIC not in names else names


def _need_token(token: int | None, got: str) -> None:
    if token is None:
        raise SafetyError(
            got,
            f"The model has no control token {TOXIC_TOKEN}: it learns one by training with it",
            "Train with --toxic-token true on a task with --mutators safety_toxic_token, or leave this out",
        )


def _names_in(opt: Mapping[str, Any]) -> tuple[str, ...]:
    """The names in `--control`.

    Raises:
        SafetyError: what stands there is no name, or is the toxic token's.
    """
    listed = options_from(opt, AskedOptions).control
    names = () if listed.strip().lower() == NONE else token_names(listed)
    if TOXIC in names:
        raise SafetyError(
            f"--control got {listed}",
            "The inner toxic model has a flag of its own, which is for research alone",
            "Leave toxic out; for research type --toxic-control true",
        )
    return names


def _asked_for(opt: Opt) -> _Switch:
    """What replies are asked for; unsafe ones by the user of this very run, whatever a saved `.opt` says.

    Raises:
        SafetyError: a file of options (`--init-opt`) asks for unsafe replies, which ParlAI takes for something that was
            typed; or a name is none.
    """
    typed = opt.get("override") or {}
    file = typed.get("init_opt")
    held = Opt.load_init(file) if file else {}
    unsafe = FLAG if held.get(FLAG) else "control = unsafe" if UNSAFE in _names_in(held) else None
    if unsafe:
        raise SafetyError(
            f"--init-opt got {file!r}, which holds {unsafe}",
            "Unsafe replies are asked for by hand each time, and not by a file of options that goes from hand to hand",
            "Take it out of that file; for research type --toxic-control true or --control unsafe beside it",
        )
    on, names = options_from(typed, ControlOptions).toxic_control, _names_in(opt)
    if not on and options_from(opt, ControlOptions).toxic_control:
        logging.warning(
            "toxic_control stands in the options, and was not given on the command line: it does not count. A model "
            "file never holds it, so somebody wrote it there."
        )
    if UNSAFE in names and UNSAFE not in _names_in(typed):
        logging.warning(
            "control = unsafe stands in the options, and was not given on the command line: it does not count. A model "
            "file never holds it, so somebody wrote it there."
        )
        names = tuple(name for name in names if name != UNSAFE)
    return _Switch(on, names)


def _without_unsafe(opt: Opt) -> Opt:
    """The options without what asks for unsafe replies, so that nothing that is saved of them holds it."""
    kept = copy.deepcopy(opt)
    for options in (kept, kept.get("override") or {}):
        options.pop(FLAG, None)
        if UNSAFE in _names_in(options):
            del options["control"]
    return kept
