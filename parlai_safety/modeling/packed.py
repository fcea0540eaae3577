"""Several replies to each context in few rows: a causal model reads every prompt once, and hardly any padding.

A row holds one or more contexts one after the other, and each context its prompt and then its replies. A mask lets a
token see the prompt of its own context and what comes before it in its own reply; positions go on behind the prompt in
every reply. So each state is the one that prompt and reply alone would give. transformers hands a mask of four
dimensions on to its attentions as it is; whether a model heeds mask and positions is tried, see `PackedReplies`.

Left out: attentions that take no such mask (flash attention), and models that count positions themselves (ALiBi) or mix
neighbours otherwise (state spaces, convolutions). There each reply is computed with a prompt of its own.
"""

from __future__ import annotations

import heapq
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from parlai.utils import logging
from torch import Tensor

WIDEST = 4
"""A row is at most this many times as wide as the longest context."""
EVEN = 8
"""Rows are a multiple of this wide, as kernels like it."""
ATTENTIONS = ("sdpa", "eager")
"""The kernels of transformers that take a mask as it is."""
_REFUSALS = (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError)
"""What models raise that expect another kind of mask, or none."""

Apart = Callable[[Tensor, Tensor], Tensor]
"""(prompts (R, S), replies (R, T)) -> their states (R, T, D), each reply with a prompt of its own."""


class Reach(NamedTuple):
    """How far apart tokens that see each other are."""

    positions: int
    """Of the longest prompt with one reply."""
    places: int
    """Of the longest context, with all its replies."""


class Packed(NamedTuple):
    """B prompts and R replies in N rows of W places."""

    ids: Tensor
    """(N, W) int64."""
    positions: Tensor
    """(N, W) int64, behind the beginning of the prompt."""
    context: Tensor
    """(N, W) int64, the prompt that is there or is answered there; -1 in padding."""
    reply: Tensor
    """(N, W) int64; -1 in prompts and padding."""
    wanted: Tensor
    """(R, T) int64, the place among all N * W whose state predicts each token of a reply."""
    reach: Reach
    saves: bool
    """Whether these rows cost less than each reply with a prompt of its own."""

    def mask(self, dtype: torch.dtype, window: int | None = None) -> Tensor:
        """(N, 1, W, W): 0 where a place (third) sees another (fourth), and the lowest number of the type elsewhere.

        Args:
            dtype: of the result.
            window: a token is seen from positions less than this behind it; None for all.
        """
        place = torch.arange(self.ids.size(1), device=self.ids.device)
        sees = self.context[:, :, None] == self.context[:, None]
        sees &= (self.reply[:, None] < 0) | (self.reply[:, None] == self.reply[:, :, None])
        sees &= place[:, None] >= place
        if window is not None:
            sees &= self.positions[:, :, None] - self.positions[:, None] < window
        return torch.zeros_like(sees, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def pack(prompt: Tensor, ys: Tensor, example: Tensor, *, null: int, blank: int, states_size: int) -> Packed:
    """Place replies, and once each the prompts that they answer, into rows; a prompt without a reply is left out.

    The last token of a reply predicts nothing and takes no place.

    Args:
        prompt: (B, S) ids padded at the right; no row without a token.
        ys: (R, T) ids padded at the right; R is at least 1.
        example: (R,) the prompt that each reply answers.
        null: id of padding.
        blank: id that stands in padding where the model reads it.
        states_size: D, by which the cost of wide rows is weighed against that of padding.
    """
    prompts = (prompt != null).sum(1).tolist()
    places = ((ys != null).sum(1) - 1).clamp_(min=0).tolist()
    of: dict[int, list[int]] = {}
    for reply, context in enumerate(example.tolist()):
        of.setdefault(context, []).append(reply)
    sizes = {context: prompts[context] + sum(places[reply] for reply in given) for context, given in of.items()}
    rows, width = _rows(sizes, states_size)

    pieces = []
    ends, begins = [0] * len(places), [0] * len(places)  # the prompt's last place, the reply's first one
    for row, contexts in enumerate(rows):
        place = row * width
        for context in contexts:
            pieces.append(_Piece(place, prompts[context], context * prompt.size(1), 0, context, -1))
            place += prompts[context]
            end = place - 1
            for reply in of[context]:
                begin = prompt.numel() + reply * ys.size(1)
                pieces.append(_Piece(place, places[reply], begin, prompts[context], context, reply))
                ends[reply], begins[reply] = end, place
                place += places[reply]
    table = torch.tensor(pieces)
    counts = table[:, 1]
    table = table.repeat_interleave(counts, 0)
    table[:, [0, 2, 3]] += (torch.arange(len(table)) - (counts.cumsum(0) - counts).repeat_interleave(counts))[:, None]
    whole = torch.tensor(_Piece(0, 0, prompt.numel() + ys.numel(), 0, -1, -1)).repeat(len(rows) * width, 1)
    whole[table[:, 0]] = table
    source, positions, context_of, reply_of = whole[:, 2:].to(prompt.device).view(len(rows), width, 4).unbind(-1)
    behind = torch.minimum(torch.arange(ys.size(1)), torch.tensor(places)[:, None])
    wanted = torch.where(behind > 0, torch.tensor(begins)[:, None] + behind - 1, torch.tensor(ends)[:, None])

    longest = [prompts[context] + max(places[reply] for reply in given) for context, given in of.items()]
    return Packed(
        ids=torch.cat((prompt.flatten(), ys.flatten(), prompt.new_tensor([blank])))[source],
        positions=positions,
        context=context_of,
        reply=reply_of,
        wanted=wanted.to(prompt.device),
        reach=Reach(max(longest), max(sizes.values())),
        saves=_cost(len(rows), width, states_size) < _cost(len(places), max(longest), states_size),
    )


class _Piece(NamedTuple):
    """A prompt or a reply in its row."""

    place: int
    tokens: int
    source: int
    position: int
    context: int
    reply: int


def _rows(sizes: dict[int, int], states_size: int) -> tuple[list[list[int]], int]:
    """Share contexts of some sizes among rows, so that these cost least, and say how wide they are.

    For each number of rows that may pay, the contexts are placed from the longest to the shortest, each into the row
    that holds least.
    """
    order = sorted(sizes, key=lambda context: -sizes[context])
    longest = sizes[order[0]]
    found: list[tuple[int, int, list[list[int]]]] = []
    for count in range(-(-sum(sizes.values()) // (WIDEST * longest)), len(order) + 1):
        rows: list[list[int]] = [[] for _ in range(count)]
        filled = [(0, row) for row in range(count)]
        for context in order:
            held, row = filled[0]
            heapq.heapreplace(filled, (held + sizes[context], row))
            rows[row].append(context)
        width = _even(max(filled)[0])
        found.append((_cost(count, width, states_size), width, rows))
        if width == _even(longest):
            break
    _, width, rows = min(found)
    return rows, width


def _even(width: int) -> int:
    return -(-width // EVEN) * EVEN


def _cost(rows: int, width: int, states_size: int) -> int:
    """What a model's layers take for some rows, in a unit of its own.

    For each token the linear layers take as much as attention does in a row of about four times the states' size,
    measured on a CPU with a Llama of 6 layers x 384.
    """
    return rows * width * (4 * states_size + width)


class PackedReplies:
    """Packed rows through one model, where they are known to give what each reply apart gives.

    Before rows reach further than any before, mask and positions are tried on a made-up row of at least that reach:
    without dropout or any other random number, and where the weights allow it in fp32. A model whose states differ is
    never given such rows again.

    Args:
        model: the `parlai_safety.modeling.causal_lm.CausalLM` whose states are computed.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._tried = Reach(0, 0)
        config = model.lm.config.get_text_config()
        self._windows = _windows(config)
        counts = "position_ids" in inspect.signature(model.lm.base_model.forward).parameters
        self._exact = counts and self._windows is not None
        self._most = getattr(config, "max_position_embeddings", None)

    def __call__(self, prompt: Tensor, ys: Tensor, example: Tensor, apart: Apart) -> Tensor:
        """The states (R, T, D) that predict R replies to B prompts; see `pack`.

        Args:
            prompt: (B, S).
            ys: (R, T).
            example: (R,).
            apart: computes each reply with a prompt of its own, where that costs less or alone is exact.
        """
        if self._exact and self._model.lm.config._attn_implementation in ATTENTIONS:
            packed = self._pack(prompt, ys, example)
            if packed.saves and self._is_exact(packed.reach, apart):
                return self._states(packed)
        return apart(prompt.index_select(0, example), ys)

    def _pack(self, prompt: Tensor, ys: Tensor, example: Tensor) -> Packed:
        model = self._model
        return pack(prompt, ys, example, null=model.NULL_IDX, blank=model.blank, states_size=model.states_size)

    def _states(self, packed: Packed) -> Tensor:
        model = self._model
        dtype = model.compute or model.lm.dtype
        masks = {kind: packed.mask(dtype, window) for kind, window in (self._windows or {}).items()}
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        states: Tensor = model.body(
            input_ids=packed.ids, attention_mask=mask, position_ids=packed.positions, use_cache=False
        )
        found = states.flatten(0, 1).index_select(0, packed.wanted.flatten())
        return found.view(*packed.wanted.shape, -1)

    def _is_exact(self, reach: Reach, apart: Apart) -> bool:
        if any(wanted > tried for wanted, tried in zip(reach, self._tried, strict=True)):
            positions, places = (1 << (max(pair) - 1).bit_length() for pair in zip(reach, self._tried, strict=True))
            # No further than the model has positions, if it says how many.
            positions = max(reach.positions, min(positions, self._most or reach.positions))
            self._tried = Reach(positions, places)
            self._exact = self._is_same(self._tried, apart)
        return self._exact

    def _is_same(self, reach: Reach, apart: Apart) -> bool:
        """Whether a row of some reach gives what each of its replies gives apart."""
        model = self._model
        longest = max(1, reach.positions // 2)
        steps = max(1, reach.positions - longest)
        many = max(2, -(-(reach.places - longest) // steps))
        talks = ((longest, [steps + 1] * many), (2, [3, 1]), (1, [2, 2]))
        example = torch.tensor([row for row, (_, replies) in enumerate(talks) for _ in replies])
        prompt, ys = (
            self._made(lengths)
            for lengths in ([length for length, _ in talks], [length for _, replies in talks for length in replies])
        )
        example = example.to(prompt.device)
        given = ys != model.NULL_IDX
        why = "its states differ"
        try:
            with _plainly(model):
                packed = self._states(self._pack(prompt, ys, example))
                # Norms and softmax are often taken in fp32, whatever the type.
                least = max(torch.finfo(kind).eps for kind in (packed.dtype, torch.float32)) ** (2 / 3)
                for rows in (example == 0, example != 0):  # the long ones and the short ones
                    wanted = apart(prompt[example[rows]], ys[rows])[given[rows]]
                    far = (packed[rows][given[rows]] - wanted).norm(dim=-1) / wanted.norm(dim=-1)
                    if not bool((far <= least).all()):
                        break
                else:
                    return True
        except _REFUSALS as error:
            why = str(error)[:120]
        logging.info(
            f"{type(model.lm).__name__} cannot compute several replies behind one prompt ({why}): "
            "each gets a prompt of its own."
        )
        return False

    def _made(self, lengths: list[int]) -> Tensor:
        """Rows of made-up tokens, always the same ones."""
        model, source = self._model, torch.Generator().manual_seed(sum(lengths))
        vocabulary = model.lm.get_input_embeddings().weight.size(0)
        rows = torch.randint(vocabulary, (len(lengths), max(lengths)), generator=source)
        rows.masked_fill_(rows == model.NULL_IDX, model.blank)
        rows.masked_fill_(torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None], model.NULL_IDX)
        return rows.to(model.lm.device)


@contextmanager
def _plainly(model: Any) -> Iterator[None]:
    """No gradient, no dropout and, where the weights are wide enough, no rounding to half precision."""
    compute, training = model.compute, [module for module in model.modules() if module.training]
    model.eval()
    if model.lm.dtype in (torch.float32, torch.float64):
        model.compute = None
    try:
        with torch.no_grad(), torch.autocast(model.lm.device.type, enabled=False):
            yield
    finally:
        model.compute = compute
        for module in training:
            module.training = True


def _windows(config: Any) -> dict[str, int | None] | None:
    """How far back each type of a model's layers sees, by its name; None where a type is not known here."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        return {"full_attention" if window is None else "sliding_attention": window}
    known = {"full_attention": None, "sliding_attention": window}
    return {kind: known[kind] for kind in sorted(set(types))} if known.keys() >= set(types) else None
