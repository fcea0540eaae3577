"""Messages with further replies to their context, such as rejected ones: their vectors in the batch."""

from __future__ import annotations

from typing import Any

import torch
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.core.torch_agent import Batch

from parlai_safety.agents.labelled import LabelledMixin
from parlai_safety.errors import SafetyError
from parlai_safety.losses.labels import TokenLabel
from parlai_safety.message import FIELDS


class RepliesMixin(LabelledMixin):
    """Learning from several replies to one context; `reply_fields` names the fields beside the label."""

    reply_fields: tuple[str, ...] = ("rejected",)
    """Fields of the message that hold replies, each a list of texts."""

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the flags of `LabelledMixin`; words of all replies enter a dictionary that is built."""
        super().add_cmdline_args(parser, partial_opt)
        parser.set_defaults(dict_textfields=",".join(("text", "labels", *cls.reply_fields)))
        return parser

    def _set_label_vec(self, obs: Message, add_start: bool, add_end: bool, truncate: int | None) -> None:
        super()._set_label_vec(obs, add_start, add_end, truncate)  # type: ignore[misc]
        for field in self.reply_fields:
            replies = obs.get(field) or []
            if not FIELDS[field].valid(replies) or not all(text.strip() for text in replies):
                raise SafetyError(
                    f"a message of the task {obs.get('id', '?')!r} has {field!r} = {replies!r}",
                    f"This field holds {FIELDS[field].kind}: {FIELDS[field].meaning}",
                    f'Write for example {{"labels": ["Fine, thanks."], "{field}": ["Go away."]}}, or leave the field '
                    "out",
                )
            found = []
            for text in replies:
                label = Message({"labels": [text]})
                super()._set_label_vec(label, add_start, add_end, truncate)  # type: ignore[misc]
                found.append(label["labels_vec"])
            obs.force_set(f"{field}_vecs", found)

    def batchify(self, obs_batch: list[Any], sort: bool = False) -> Batch:
        """Add for each field its replies, such as `rejected_vec` (P, T), and `rejected_example` (P,), their examples.

        Raises:
            SafetyError: an example is to be avoided and not one of a pair.
        """
        batch = super().batchify(obs_batch, sort=sort)
        if not batch.batchsize or batch.label_vec is None:
            return batch
        if (batch.token_labels == TokenLabel.NEGATIVE).any():
            raise SafetyError(
                f"an example for {type(self).__name__} has classifier_label 'neg'",
                "This method learns from pairs, whose label is the chosen reply, and from ordinary talk; a label to be "
                "avoided is neither",
                "Use a task with pairs such as -t safety:pairs, --mutators safety_positive on other talk, or -m "
                "safety:cringe, which learns from single replies",
            )
        for field in self.reply_fields:
            found = [(row, vec) for row, i in enumerate(batch.valid_indices) for vec in obs_batch[i][f"{field}_vecs"]]
            if found:
                rows, vecs = zip(*found, strict=True)
                batch[f"{field}_vec"], _ = self._pad_tensor(list(vecs), is_label=True)
                batch[f"{field}_example"] = torch.tensor(rows)
        return batch

    _pad_tensor: Any
