"""Any `AutoModelForCausalLM` as a generator of ParlAI: the prompt is what the encoder takes, the reply is decoded.

While a reply is learned, prompt and reply are one sequence, padded at its right end, where causal attention never
looks: no mask is needed. Several replies to a prompt share its computation, see `parlai_safety.modeling.packed`. While
replies are generated, prompts are padded at their left end and the states are cached.

Left out: models whose states are no cache that transformers' `Cache` reorders, such as Mamba's first ones.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from parlai.core.torch_generator_agent import TorchGeneratorModel
from torch import Tensor, nn

from parlai_safety.errors import SafetyError
from parlai_safety.modeling.output import LinearOutput
from parlai_safety.modeling.packed import PackedReplies


class CausalLM(TorchGeneratorModel):
    """A causal language model of transformers, with the methods that ParlAI's generators have.

    Args:
        lm: the model; with LoRA, the one into which the adapters were put.
        null: id of padding; it need not be one of the vocabulary.
        start: id that stands for the beginning of a reply; the model never sees it.
        end: id that ends a reply.
        blank: id of the vocabulary that stands where a prompt has no token at all.
        compute: the type in which a pass is computed where parameters are fp32; None for their own.
    """

    def __init__(
        self, lm: Any, *, null: int, start: int, end: int, blank: int, compute: torch.dtype | None = None
    ) -> None:
        super().__init__(null, start, end)
        self.lm = lm
        self.blank, self.compute = blank, compute
        self._linear: bool | None = None
        if lm.base_model is lm:
            raise SafetyError(
                f"The model is a {type(lm).__name__}",
                "Its body cannot be told from its output layer, which is computed apart here",
                "Use a model whose body stands under its base_model_prefix, such as Llama 3, Qwen, Gemma, GPT-2 or OPT",
            )
        if "past_key_values" not in inspect.signature(lm.base_model.forward).parameters:
            raise SafetyError(
                f"The model is a {type(lm).__name__}",
                "Its body takes no cache of keys and values, by which replies are generated token by token",
                "Use a model that has one, such as Llama 3, Qwen, Gemma, GPT-2 or OPT",
            )
        self._packed = PackedReplies(self)

    # --- what ParlAI calls ------------------------------------------------------------------------------------------

    def encoder(self, prompt: Tensor) -> Tensor:
        """(B, S) ids of prompts, padded at either end -> the same, padded at the right end, no row without a token."""
        given = prompt != self.NULL_IDX
        right = prompt.gather(1, (~given).long().argsort(dim=1, stable=True))
        if right.size(1) == 0:
            return right.new_full((len(right), 1), self.blank)
        right[:, 0] = torch.where(given.any(1), right[:, 0], self.blank)
        return right

    def decoder(self, tokens: Tensor, prompt: Tensor, state: CausalSteps | None = None) -> tuple[Tensor, CausalSteps]:
        """One step, as ParlAI's search asks for it: (R, t) tokens with the start -> (R, 1, D), and the cache."""
        if state is None:
            state = CausalSteps(self, prompt)
        return state(tokens)[:, None], state

    def decode_forced(self, encoder_states: Tensor, ys: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (B, T, V) of given replies (B, T), and the likeliest ids (B, T)."""
        logits = self.output(self.forced(encoder_states, ys))
        return logits, logits.argmax(-1)

    def forced(self, prompt: Tensor, ys: Tensor) -> Tensor:
        """The states that predict given replies: (B, S) prompts, (B, T) replies, padded at the right -> (B, T, D)."""
        lengths = (prompt != self.NULL_IDX).sum(1, keepdim=True)
        targets = ys.size(1)
        whole = int((lengths + (ys != self.NULL_IDX).sum(1, keepdim=True)).max()) - 1
        place = torch.arange(max(whole, int(lengths.max())), device=ys.device)[None]
        both = torch.cat((prompt, ys), 1)
        source = torch.where(place < lengths, place, place - lengths + prompt.size(1)).clamp_(max=both.size(1) - 1)
        ids = both.gather(1, source)
        states = self.body(input_ids=ids.masked_fill(ids == self.NULL_IDX, self.blank), use_cache=False)
        first = lengths - 1
        wanted = (first + torch.arange(targets, device=ys.device)).clamp_(max=states.size(1) - 1)
        return states.gather(1, wanted[..., None].expand(-1, -1, states.size(-1)))

    def decode_several(self, encoder_states: Tensor, ys: Tensor, example: Tensor) -> tuple[Tensor, Tensor]:
        """`decode_forced` for R replies (R, T) to B prompts, with the prompt (R,) that each reply answers."""
        logits = self.output(self._packed(encoder_states, ys, example, self.forced))
        return logits, logits.argmax(-1)

    def output(self, states: Tensor) -> Tensor:
        """(..., D) states -> (..., V) logits."""
        with self._autocast(states):
            if self.is_linear():
                logits: Tensor = self.head(states)
            else:
                logits = self._logits_of(states)
        return logits

    def reorder_encoder_states(self, encoder_states: Tensor, indices: Any) -> Tensor:
        """The prompts of these rows."""
        return encoder_states.index_select(0, torch.as_tensor(indices, device=encoder_states.device))

    def reorder_decoder_incremental_state(self, incremental_state: CausalSteps, inds: Tensor) -> CausalSteps:
        """The cache of these rows."""
        incremental_state.select(inds)
        return incremental_state

    # --- what our modules call --------------------------------------------------------------------------------------

    def decoder_steps(self, encoder_states: Tensor) -> CausalSteps:
        """The steps that `parlai_safety.modeling.sampler` takes."""
        return CausalSteps(self, encoder_states)

    def linear_output(self, states: Tensor) -> LinearOutput | None:
        """The output layer as one linear map of states (N, D), or None where it is not one."""
        if type(self).output is not CausalLM.output or "output" in vars(self):
            return None
        if type(self.head) is not nn.Linear or self.head._forward_hooks or not self.is_linear():
            return None
        return LinearOutput(states, self.head.weight, self.head.bias, None)

    @property
    def states_size(self) -> int:
        """D."""
        return int(self.head.in_features)

    @property
    def head(self) -> Any:
        """The layer that turns states into scores."""
        return self.lm.get_output_embeddings()

    def body(self, **inputs: Any) -> Tensor:
        """Run the model up to its output layer: the states (B, L, D), in the type of the computation."""
        with self._autocast(inputs["input_ids"]):
            states: Tensor = self.lm.base_model(**inputs, return_dict=True).last_hidden_state
        return states if self.compute is None else states.to(self.compute)

    def check_causal(self) -> None:
        """See that no state depends on later tokens.

        Raises:
            SafetyError: one does, as in encoders such as BERT, which would read the reply that they are to learn.
        """
        training, last = self.lm.training, self.lm.get_input_embeddings().weight.size(0) - 1
        ids = torch.tensor([[self.blank, self.blank, 0], [self.blank, self.blank, last]], device=self.lm.device)
        self.lm.eval()
        with torch.no_grad():
            one, other = self.body(input_ids=ids, use_cache=False)[:, :2]
        self.lm.train(training)
        most = torch.finfo(one.dtype).eps ** 0.5 * one.abs().max()
        if (one - other).abs().max() > most:
            raise SafetyError(
                f"The model is a {type(self.lm).__name__}, whose states depend on later tokens",
                "It would read the reply that it is to learn, and could not write one afterwards",
                "Use a causal model, such as Llama 3, Qwen, Gemma, GPT-2 or OPT (BERT's kind needs is_decoder)",
            )

    def is_linear(self) -> bool:
        """Whether scores are the head's alone; some models scale or cap them afterwards."""
        if self._linear is None:
            weight = self.head.weight
            states = torch.linspace(-9, 9, self.states_size, device=weight.device)[None, None]
            states = states.to(weight.dtype if weight.is_floating_point() else self.lm.dtype)
            with torch.no_grad():
                self._linear = bool(torch.equal(self._logits_of(states), self.head(states)))
        return self._linear

    def _logits_of(self, states: Tensor) -> Tensor:
        """What the model makes of states where its body would give them."""
        flat = states.reshape(1, -1, states.size(-1))
        with _body_gives(self.lm, flat):
            ids = torch.full(flat.shape[:2], self.blank, device=states.device)
            logits: Tensor = self.lm(input_ids=ids, use_cache=False).logits
        return logits.view(*states.shape[:-1], -1)

    def _autocast(self, tensor: Tensor) -> AbstractContextManager[Any]:
        if self.compute is None:
            return nullcontext()
        return torch.autocast(tensor.device.type, dtype=self.compute)


class CausalSteps:
    """The state after the last token of each row, with cached keys and values.

    It begins with one row a prompt. See `parlai_safety.modeling.decoder_fast.DecoderSteps`.
    """

    def __init__(self, model: CausalLM, prompt: Tensor) -> None:
        self._model = model
        self._counts = "position_ids" in inspect.signature(model.lm.base_model.forward).parameters
        given = prompt != model.NULL_IDX
        width = int(given.sum(1).max())
        # Padded at the right, as the encoder gives it; here the last token of every row stands at the end.
        turned = given.long().argsort(dim=1, stable=True)
        self._prompt = prompt.gather(1, turned)[:, -width:]
        mask = given.gather(1, turned)[:, -width:]
        # Without padding no mask is needed, and attention is quicker.
        self._mask: Tensor | None = None if bool(mask.all()) else mask
        self._cache: Any = None
        self._seen = 0

    def __call__(self, tokens: Tensor) -> Tensor:
        """(R, t) all tokens of the reply so far, the start included -> (R, D) states after the last one."""
        new = tokens[:, max(1, self._seen) :]
        if self._seen == 0:
            new = torch.cat((self._prompt, new), 1)
        elif self._cache is None:
            raise SafetyError(
                f"The model {type(self._model.lm).__name__} gave no cache of its states",
                "Replies are generated token by token from what was computed before",
                "Use a model with keys and values that transformers caches",
            )
        fresh = tokens.size(1) - max(1, self._seen)
        inputs: dict[str, Any] = {"input_ids": new.masked_fill(new == self._model.NULL_IDX, self._model.blank)}
        if self._mask is not None:
            self._mask = torch.cat((self._mask, self._mask.new_ones(len(new), fresh)), 1)
            inputs["attention_mask"] = self._mask.long()
            if self._counts:
                inputs["position_ids"] = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -new.size(1) :]
        with self._model._autocast(new):
            found = self._model.lm.base_model(**inputs, past_key_values=self._cache, use_cache=True, return_dict=True)
        self._cache, self._seen = found.past_key_values, tokens.size(1)
        last: Tensor = found.last_hidden_state[:, -1]
        return last if self._model.compute is None else last.to(self._model.compute)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be named several times."""
        if self._cache is not None:
            self._cache.reorder_cache(rows)
        self._prompt = self._prompt[rows]
        if self._mask is not None:
            self._mask = self._mask[rows]


class _Given(nn.Module):
    """In the place of a model's body: it gives states that are known."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self._states = states

    @property
    def decoder(self) -> _Given:
        """Some models call a part of their body."""
        return self

    def forward(self, *_: Any, **__: Any) -> Any:
        """The states, whatever is asked."""
        return _states_alone()(last_hidden_state=self._states)


@functools.cache
def _states_alone() -> type[Any]:
    from transformers.modeling_outputs import BaseModelOutputWithPast

    class StatesAlone(BaseModelOutputWithPast):
        """Answers None to whatever else a model wants to hand on, such as attentions."""

        def __getattr__(self, name: str) -> None:
            if name.startswith("__"):
                raise AttributeError(name)

    return StatesAlone


@contextmanager
def _body_gives(lm: Any, states: Tensor) -> Iterator[None]:
    name = lm.base_model_prefix
    body = lm._modules[name]
    lm._modules[name] = _Given(states)
    try:
        yield
    finally:
        lm._modules[name] = body
