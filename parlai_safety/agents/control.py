"""The toxic control token in our agents: who has it, where it is honoured, and what keeps everybody else from it.

A model that is trained with `--toxic-token true` on messages with `control` "toxic" holds an inner toxic model in the
same weights: its replies behind the token. Source: adversarial DPO, Kim and Lee 2024, arXiv:2405.12900, of which only
the pipeline could be confirmed. The token stands at the very end of the prompt, behind whatever opens the reply. It is
put there as an id, after the text was cut and turned into ids:

- in losses, for examples whose message has `control` "toxic" and a label;
- in replies, only with `--toxic-control true`, which is for research, or inside `toxic_control(agent)`.

From every text, label and candidate its name and its id are taken out, and its score is minus infinity wherever a reply
is searched for, so that it can be neither typed nor said. Left out: generators other than ParlAI's transformers and
causal language models.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
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
from parlai_safety.message import FIELDS, TOXIC_TOKEN
from parlai_safety.modeling.control import append_token, with_row, without_id, without_token
from parlai_safety.options import add_options, option, options_from

FLAG = "toxic_control"
_TEXTS = ("text", "temp_history")
_LISTS = ("labels", "eval_labels", "label_candidates", "rejected", "toxic")
_IDS = ("text_vec", "full_text_vec", "labels_vec", "eval_labels_vec")


@dataclass(frozen=True)
class ControlOptions:
    """The control token, and whether replies are asked for behind it."""

    toxic_token: bool = option(
        False,
        "The model has a toxic control token, behind which it learns examples with control toxic; a checkpoint with "
        "the token keeps it.",
    )
    toxic_control: bool = option(
        False, "Research only: answer as the inner toxic model. Counts from the command line, and is never saved."
    )


@dataclass
class _Switch:
    """Whether replies are asked for behind the token; an agent and its clones hold one."""

    on: bool


class ControlMixin:
    """The control token for a `TorchGeneratorAgent`: put this before its class."""

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the flags of `ControlOptions`."""
        super().add_cmdline_args(parser, partial_opt)  # type: ignore[misc]
        add_options(parser, ControlOptions, "Toxic control token")
        return parser

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        if shared is None:
            asked = _asked_for(opt)
            self._switch = _Switch(asked)
            super().__init__(_without_flag(opt), shared)  # type: ignore[call-arg]
            if asked:
                _need_token(self.toxic_id, "--toxic-control got true")
                logging.warning(
                    "--toxic-control true: the model answers as its inner toxic model. This is for research alone, "
                    "such as making examples of what to avoid. Let nobody talk with it."
                )
        else:
            self._switch = shared[FLAG]
            super().__init__(opt, shared)  # type: ignore[call-arg]

    @property
    def toxic_id(self) -> int | None:
        """The token's id; None where the model has none."""
        found: int | None = self.dict.tok2ind.get(TOXIC_TOKEN)
        return found

    def share(self) -> dict[str, Any]:
        """ParlAI's share, and whether clones answer behind the token."""
        return {**super().share(), FLAG: self._switch}  # type: ignore[misc]

    # --- dictionary and weights ---------------------------------------------------------------------------------------

    def build_dictionary(self) -> Any:
        """ParlAI's dictionary, with the token where it is asked for or the checkpoint has it.

        Raises:
            SafetyError: this kind of agent or dictionary takes no further token.
        """
        dictionary = super().build_dictionary()  # type: ignore[misc]
        wanted = options_from(self.opt, ControlOptions).toxic_token
        begun_from, _ = self._get_init_model(self.opt, None)  # type: ignore[attr-defined]
        if not wanted and TOXIC_TOKEN not in dictionary.tok2ind and not _has_token(begun_from):
            return dictionary
        try:
            if not (isinstance(self, TransformerGeneratorAgent) or getattr(self, "takes_token", False)):
                raise NotImplementedError(f"a {type(self).__name__} has none")
            others = [token for token in self.special_toks if token != TOXIC_TOKEN]
            dictionary.add_additional_special_tokens([*others, TOXIC_TOKEN])
        except NotImplementedError as error:
            raise SafetyError(
                f"--toxic-token got true, and the dictionary cuts text by {dictionary.tokenizer!r} "
                f"({' '.join(str(error).split())[:100]})",
                "The token is one more word of dictionary and model, which not every kind of them can take",
                "Use a transformer of ParlAI with --dict-tokenizer bytelevelbpe, gpt2, slow_bytelevel_bpe, re, split "
                "or space, or a causal language model (safety:causal_lm)",
            ) from error
        self.opt["toxic_token"] = True
        return dictionary

    def load(self, path: str) -> dict[str, Any]:
        """Load a checkpoint; one of a model without the token gets its row, see `modeling.control.with_row`."""
        self._gets_token = self.toxic_id is not None and not _has_token(path)
        try:
            states: dict[str, Any] = super().load(path)  # type: ignore[misc]
        finally:
            self._gets_token = False
        return states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load model parameters."""
        if self._gets_token and self.toxic_id is not None:
            state_dict = with_row(state_dict, self.model, self.toxic_id)
            self.resized_embeddings = True  # by which ParlAI knows that a saved optimizer does not fit
        super().load_state_dict(state_dict)  # type: ignore[misc]

    # --- nobody types it ----------------------------------------------------------------------------------------------

    def observe(self, observation: Any) -> Message:
        """ParlAI's, without the token's name in any text."""
        return super().observe(self._clean(observation))  # type: ignore[misc, no-any-return]

    def self_observe(self, self_message: Any) -> None:
        """ParlAI's, without the token's name in the reply."""
        super().self_observe(self._clean(self_message))  # type: ignore[misc]

    def _clean(self, message: Any) -> Any:
        if message is None or self.toxic_id is None:
            return message
        cleaned = Message(message)
        for name in _TEXTS:
            if isinstance(message.get(name), str):
                cleaned.force_set(name, without_token(message[name]))
        for name in _LISTS:
            if FIELDS["rejected"].valid(message.get(name)):
                cleaned.force_set(name, [without_token(text) for text in message[name]])
        return cleaned

    def _set_text_vec(self, obs: Message, history: Any, truncate: int | None) -> Message:
        found: Message = super()._set_text_vec(obs, history, truncate)  # type: ignore[misc]
        self._strip(obs)
        return found

    def _set_label_vec(self, obs: Message, add_start: bool, add_end: bool, truncate: int | None) -> None:
        super()._set_label_vec(obs, add_start, add_end, truncate)  # type: ignore[misc]
        self._strip(obs)

    def _set_label_cands_vec(self, obs: Message, add_start: bool, add_end: bool, truncate: int | None) -> None:
        super()._set_label_cands_vec(obs, add_start, add_end, truncate)  # type: ignore[misc]
        if self.toxic_id is not None and obs.get("label_candidates_vecs") is not None:
            obs.force_set(
                "label_candidates_vecs", [without_id(ids, self.toxic_id) for ids in obs["label_candidates_vecs"]]
            )

    def _strip(self, obs: Message) -> None:
        for name in _IDS:
            if self.toxic_id is not None and obs.get(name) is not None:
                obs.force_set(name, without_id(obs[name], self.toxic_id))

    # --- where it is honoured -----------------------------------------------------------------------------------------

    def batchify(self, obs_batch: list[Any], sort: bool = False) -> Batch:
        """Add `control` (B,) bool to ParlAI's batch: whose labels are learned and scored behind the token.

        Raises:
            SafetyError: a message with a label asks for the token, and the model has none; or the field is unknown.
        """
        batch: Batch = super().batchify(obs_batch, sort=sort)  # type: ignore[misc]
        if batch.batchsize and batch.label_vec is not None:
            rows = [self._asks(obs_batch[i]) for i in batch.valid_indices]
            if any(rows):
                batch["control"] = torch.tensor(rows)
        return batch

    def _asks(self, message: Any) -> bool:
        control = message.get("control")
        if control is None or not ("labels" in message or "eval_labels" in message):
            return False
        where = f"a message of the task {message.get('id', '?')!r} has 'control' = {control!r}"
        if not FIELDS["control"].valid(control):
            raise SafetyError(
                where, f"This field holds {FIELDS['control'].kind}: {FIELDS['control'].meaning}", "Leave the field out"
            )
        _need_token(self.toxic_id, where)
        return True

    def _model_input(self, batch: Batch) -> Any:
        """What losses are computed of: the examples with `control` behind the token."""
        rows = batch.get("control")
        if self._switch.on and not batch.get("is_training"):
            rows = torch.ones(batch.batchsize, dtype=torch.bool)
        return super()._model_input(self._behind_token(batch, rows))  # type: ignore[misc]

    def _encoder_input(self, batch: Batch) -> Any:
        """What replies and candidates are found from: no prompt behind the token, or all of them."""
        if self.toxic_id is None:
            return super()._encoder_input(batch)  # type: ignore[misc]
        rows = torch.ones(batch.batchsize, dtype=torch.bool) if self._switch.on else None
        given = self._behind_token(batch, rows)
        plain = {name: value for name, value in given.items() if name != "control"}
        return super()._model_input(Batch(**plain))  # type: ignore[misc]

    def _behind_token(self, batch: Batch, rows: Tensor | None) -> Batch:
        prompts, token = batch.text_vec, self.toxic_id
        if rows is None or token is None or prompts is None:
            return batch
        grown = append_token(prompts, token, self.NULL_IDX, limit=self.prompt_limit)
        prompts = F.pad(prompts, (0, max(0, grown.size(1) - prompts.size(1))), value=self.NULL_IDX)
        grown = F.pad(grown, (0, prompts.size(1) - grown.size(1)), value=self.NULL_IDX)
        whole = torch.where(rows.to(prompts.device)[:, None], grown, prompts)
        return Batch(**{**batch, "text_vec": whole})

    @property
    def prompt_limit(self) -> int | None:
        """Tokens of a prompt at most, the control token counted; None for any number."""
        positions = getattr(getattr(getattr(self.model, "module", self.model), "encoder", None), "n_positions", None)
        return self.text_truncate if self.text_truncate is not None else positions

    # --- nobody says it -----------------------------------------------------------------------------------------------

    @property
    def unsaid(self) -> list[int]:
        """Ids whose score is minus infinity wherever a reply is searched for, see `agents.generation`."""
        return [] if self.toxic_id is None else [self.toxic_id]

    def _v2t(self, vec: Any) -> str:
        text: str = super()._v2t(vec)  # type: ignore[misc]
        return text if self.toxic_id is None else without_token(text)

    _gets_token = False
    opt: Opt
    dict: Any
    model: Any
    special_toks: list[str]
    text_truncate: int | None
    NULL_IDX: int


@contextmanager
def toxic_control(agent: Any) -> Iterator[Any]:
    """Let an agent, and clones of it that are made inside, answer behind the token; research only.

    Clones that were made before go on without it, and those made inside end with it.

    Args:
        agent: an agent of ours whose model has the token.

    Yields:
        The agent.

    Raises:
        SafetyError: it has none.
    """
    asked = f"A reply of {type(agent).__name__} was asked for behind the control token"
    if not isinstance(agent, ControlMixin):
        raise SafetyError(
            asked,
            "Only an agent that learns from replies can have the token, and not one that guides another one's replies",
            "Give the agent that was trained with --toxic-token true itself",
        )
    _need_token(agent.toxic_id, asked)
    before, now = agent._switch, _Switch(True)
    agent._switch = now
    try:
        yield agent
    finally:
        agent._switch, now.on = before, False


def _has_token(path: str | None) -> bool:
    """Whether a checkpoint, if there is one, is of a model with the token."""
    file = Path(f"{path}.opt")
    if path is None or not file.is_file():
        return False
    return bool(json.loads(file.read_text(encoding="utf-8")).get("toxic_token", False))


def _need_token(token: int | None, got: str) -> None:
    if token is None:
        raise SafetyError(
            got,
            f"The model has no control token {TOXIC_TOKEN}: it learns one by training with it",
            "Train with --toxic-token true on a task with --mutators safety_toxic_token, or leave this out",
        )


def _asked_for(opt: Opt) -> bool:
    """Whether the user of this very run asks for toxic replies; what a saved `.opt` says does not count.

    Raises:
        SafetyError: a file of options (`--init-opt`) asks for them, which ParlAI takes for something that was typed.
    """
    typed = opt.get("override") or {}
    file = typed.get("init_opt")
    if file and Opt.load_init(file).get(FLAG):
        raise SafetyError(
            f"--init-opt got {file!r}, which holds {FLAG}",
            "Toxic replies are asked for by hand each time, and not by a file of options that goes from hand to hand",
            "Take it out of that file; for research type --toxic-control true beside it",
        )
    asked = options_from(typed, ControlOptions).toxic_control
    if not asked and options_from(opt, ControlOptions).toxic_control:
        logging.warning(
            "toxic_control stands in the options, and was not given on the command line: it does not count. A model "
            "file never holds it, so somebody wrote it there."
        )
    return asked


def _without_flag(opt: Opt) -> Opt:
    """The options without the flag, so that nothing that is saved of them holds it."""
    if FLAG not in opt and FLAG not in (opt.get("override") or {}):
        return opt
    kept = copy.deepcopy(opt)
    kept.pop(FLAG, None)
    (kept.get("override") or {}).pop(FLAG, None)
    return kept
