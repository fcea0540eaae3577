"""From rows in TRL's formats to token ids, and from token ids to padded batches.

A row has a prompt and completions, both as text or both as lists of messages. Token ids are those of TRL's trainers:
the prompt with each completion is tokenized as a whole, and the completion begins where that leaves the prompt's own
tokens. Two things differ. A prompt that is too long loses its *beginning*, as in dialogue the last turn is the one to
answer. And an empty text for a prompt becomes the tokenizer's start token, so that the first token of its completion
counts.

Left out, as in TRL: cleaning. A mark of the template that is written in a row becomes the mark's own token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parlai_safety.errors import SafetyError

Ids = list[int]


class TokenizedRow(NamedTuple):
    """The token ids of a prompt and of its completions, none of which is empty, and how many the prompt has lost."""

    prompt: Ids
    completions: list[Ids]
    lost: int


def tokenized(
    tokenizer: Any, row: Mapping[str, Any], prompt: Any, completions: Sequence[Any], max_length: int | None
) -> TokenizedRow:
    """Tokenize a prompt and its completions, the first of which may not share a token with the prompt.

    Args:
        tokenizer: a Hugging Face tokenizer.
        row: the row itself, for `tools` and `chat_template_kwargs` where it has them.
        prompt: text, or a list of messages (`role`, `content`), which go through the tokenizer's chat template.
        completions: one or several of the same type. To text the tokenizer's end token is added where it is missing.
        max_length: tokens that prompt and longest completion may have together; None for no limit. The prompt loses
            its beginning; a completion that is alone too long loses its end.

    Raises:
        SafetyError: prompt and completion are of different types, or one of them has no token.
    """
    for completion in completions:
        if type(completion) is not type(prompt) or not isinstance(prompt, (str, list)):
            raise SafetyError(
                f"a prompt is {_kind(prompt)} and its completion {_kind(completion)}",
                "They go through the tokenizer together",
                "Give both as text, or both as lists of messages with role and content",
            )
    if isinstance(prompt, list):
        alone, *whole = _conversations(tokenizer, row, prompt, completions)
    else:
        alone, *whole = _texts(tokenizer, prompt, completions)
    shared = min(_common_prefix(alone, ids) for ids in whole)
    replies = [ids[shared:] for ids in whole]
    if not all(replies):
        raise SafetyError(
            f"a completion of the prompt {prompt!r} has no token",
            "There is nothing to learn from it",
            "Leave the row out",
        )
    prompt_ids, lost = alone[:shared] or [_start_id(tokenizer)], 0
    if max_length is not None:
        replies = [ids[: max_length - 1] for ids in replies]
        lost = max(0, len(prompt_ids) + max(map(len, replies)) - max_length)
    return TokenizedRow(prompt_ids[lost:], replies, lost)


def _conversations(tokenizer: Any, row: Mapping[str, Any], prompt: list[Any], completions: Sequence[Any]) -> list[Ids]:
    if not tokenizer.chat_template:
        raise SafetyError(
            "the rows hold messages, and the tokenizer has no chat template",
            "Only a template says how messages become text",
            "Set tokenizer.chat_template, or give prompts and completions as text",
        )
    if not prompt:
        raise SafetyError(
            "a prompt is an empty list of messages",
            "A chat template needs at least one message",
            "Give a message, or prompts and completions as text",
        )
    more = {"tools": row.get("tools"), **(row.get("chat_template_kwargs") or {})}

    def ids(messages: list[Any], **how: Any) -> Ids:
        found = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **how, **more)
        return list(found["input_ids"])

    return [ids(prompt, add_generation_prompt=True), *(ids(prompt + completion) for completion in completions)]


def _texts(tokenizer: Any, prompt: str, completions: Sequence[str]) -> list[Ids]:
    end = tokenizer.eos_token or ""
    texts = [prompt, *(prompt + text + ("" if text.endswith(end) else end) for text in completions)]
    return [list(tokenizer(text)["input_ids"]) for text in texts]


def _common_prefix(first: Ids, second: Ids) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (left, right) in pairs if left != right), min(len(first), len(second)))


def _start_id(tokenizer: Any) -> int:
    found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if found is None:
        raise SafetyError(
            "a prompt is empty, and the tokenizer has neither a start nor an end token",
            "The first token of a completion is predicted from the one before it",
            "Give every row a prompt, or set tokenizer.bos_token",
        )
    return int(found)


def _kind(value: Any) -> str:
    return "text" if isinstance(value, str) else f"a {type(value).__name__}"


def padded(rows: Sequence[tuple[Ids, Ids]], pad_id: int, prefix: str = "") -> dict[str, Tensor]:
    """Prompts and completions as one right-padded batch.

    Args:
        rows: R pairs of prompt and completion.
        pad_id: what stands on padding.
        prefix: put before the keys.

    Returns:
        `input_ids` (R, T) int64; `attention_mask` (R, T) int64, 0 on padding; `completion_mask` (R, T) bool, True on
        the tokens of the completion.
    """
    lengths = torch.tensor([[len(prompt), len(prompt) + len(completion)] for prompt, completion in rows])
    places = torch.arange(int(lengths[:, 1].max()))
    inside = places < lengths[:, 1:]
    ids = torch.full(inside.shape, pad_id)
    ids[inside] = torch.tensor([i for prompt, completion in rows for i in (*prompt, *completion)])
    return {
        f"{prefix}input_ids": ids,
        f"{prefix}attention_mask": inside.long(),
        f"{prefix}completion_mask": inside & (places >= lengths[:, :1]),
    }
