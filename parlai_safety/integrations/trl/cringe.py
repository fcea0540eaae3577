"""`CringeTrainer`: CRINGE for causal language models, on unpaired labelled completions.

Source: Adolphs et al. 2022, arXiv:2211.05826; the loss is `parlai_safety.losses.cringe`. Left out: the iterations, in
which the model's own replies are labelled and learned from, and which are a loop around a trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments
from trl import unpair_preference_dataset

from parlai_safety.errors import SafetyError
from parlai_safety.integrations.trl.base import CompletionTrainer, column_names, setting, with_prompt
from parlai_safety.integrations.trl.rows import padded, tokenized
from parlai_safety.losses.cringe import cringe_rows, uniform_draws
from parlai_safety.losses.labels import TokenLabel
from parlai_safety.losses.whole import check_weight

_LABELS = {True: TokenLabel.POSITIVE, False: TokenLabel.NEGATIVE, None: TokenLabel.PLAIN}


@dataclass
class CringeConfig(TrainingArguments):
    """The settings of `CringeTrainer`, beside those of `transformers.TrainingArguments`; `--help` explains each.

    Raises:
        SafetyError: a value is out of its range.
    """

    alpha: float = setting(1.0, "Weight of the contrastive part; finite and >= 0.")
    k: int = setting(1, "The positive token is drawn among the k highest scores without the negative token; >= 1.")
    detach_positive: bool = setting(False, "Stop the gradient through the positive token that was drawn.")
    max_length: int | None = setting(1024, "Tokens of prompt and completion; a longer prompt loses its beginning.")
    chunk_tokens: int | None = setting(None, "Tokens a chunk of the output layer; by default by the vocabulary's size.")
    dataset_num_proc: int | None = setting(None, "Processes that tokenize the dataset.")
    model_kwargs: dict[str, Any] | None = setting(None, "What from_pretrained gets where the model is given by name.")

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_weight("alpha", self.alpha)
        if self.k < 1:
            raise SafetyError(
                f"k is {self.k}", "The positive is drawn from the k best ids", "Choose k of 1 or more; 1 is the default"
            )
        super().__post_init__()


class CringeTrainer(CompletionTrainer):
    """CRINGE on rows with `prompt`, `completion` and `label`: True to follow, False to avoid, None for plain talk.

    That is TRL's format for unpaired preferences (KTO), as text or as messages; `None` is ours, and means ordinary
    language modelling. Rows with `prompt`, `chosen` and `rejected` are taken apart into two; where there is no
    `prompt`, it is what the two begin with in common. The loss is summed over the tokens of completions,
    `sum of L_CE + alpha * sum of L_Cr`, and divided by their number, as in `parlai_safety.losses.cringe_loss`. Prompts
    are never learned from.

    Logged: `follow/nll` and `avoid/nll` (nats a token; a good model's `avoid/nll` is high), `avoid/contrastive` (the
    cost of a token to avoid, before alpha), `follow/accuracy` and `avoid/accuracy` (share of tokens that the model
    itself would have said), `avoid/share` (of all tokens).

    Args:
        model: as for `CompletionTrainer`.
        args: a `CringeConfig`.
        more: the further arguments of `CompletionTrainer`.

    Raises:
        SafetyError: the model, a row or a setting is not of a kind that the trainer can take.
    """

    metric_names = (
        "follow/nll",
        "avoid/nll",
        "avoid/contrastive",
        "follow/accuracy",
        "avoid/accuracy",
        "avoid/share",
    )

    def __init__(self, model: Any, args: CringeConfig | None = None, **more: Any) -> None:
        super().__init__(model, CringeConfig() if args is None else args, **more)
        vocabulary_size = self.model.config.get_text_config().vocab_size
        if self.args.k >= vocabulary_size:
            raise SafetyError(
                f"k is {self.args.k} for a vocabulary of {vocabulary_size}",
                "The positive is drawn from the k best ids, and the negative id is never one of them",
                f"Choose k from 1 to {vocabulary_size - 1}",
            )

    def known_format(self, dataset: Any) -> Any:
        """Rows with a chosen and a rejected completion become one row each."""
        paired = {"chosen", "rejected"} <= set(column_names(dataset))
        return unpair_preference_dataset(with_prompt(dataset)) if paired else dataset

    def check_columns(self, columns: Iterable[str], args: Any) -> None:
        """Refuse rows without prompt, completion or label."""
        missing = {"prompt", "completion", "label"} - set(columns)
        if missing:
            raise SafetyError(
                f"the rows have no {' and no '.join(sorted(missing))}, but {', '.join(sorted(columns))}",
                "CRINGE must know which completions to follow and which to avoid",
                "Give prompt, completion and label (True, False, None for plain talk), or prompt, chosen and rejected",
            )

    @staticmethod
    def tokenize_row(row: Mapping[str, Any], *, tokenizer: Any, args: Any) -> dict[str, Any]:
        """Token ids of prompt and completion, and the `TokenLabel`."""
        if row["label"] not in _LABELS:
            raise SafetyError(
                f"a row has the label {row['label']!r}",
                "A completion is to be followed, to be avoided, or plain talk",
                "Use True, False or None",
            )
        found = tokenized(tokenizer, row, row["prompt"], [row["completion"]], args.max_length)
        label = int(_LABELS[row["label"]])
        return {"prompt_ids": found.prompt, "completion_ids": found.completions[0], "token_label": label}

    def collate(self, rows: list[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `completion_mask` (B, T) and `token_label` (B,)."""
        batch = padded([(row["prompt_ids"], row["completion_ids"]) for row in rows], self._tokenizer.pad_token_id)
        return {**batch, "token_label": torch.tensor([row["token_label"] for row in rows])}

    def count_items(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Tokens of the completions."""
        return batch["completion_mask"][:, 1:].sum()

    def total_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """CRINGE summed over the tokens of the completions."""
        mask = batch["completion_mask"][:, 1:]
        labels = batch["token_label"][:, None].expand_as(mask)[mask]
        # The draws come from torch's own generator, whose state Trainer keeps in its checkpoints.
        draws = uniform_draws(labels, k=self.args.k, generator=None)
        kernel = partial(_cringe_kernel, k=self.args.k, detach_positive=self.args.detach_positive)
        costs, nll, correct = self.rows_of(model, batch, kernel, (labels, draws))
        avoid = labels == TokenLabel.NEGATIVE
        follows, avoids = (~avoid).sum(), avoid.sum()
        self.record(
            {
                "follow/nll": (nll[~avoid].sum(), follows),
                "avoid/nll": (nll[avoid].sum(), avoids),
                "avoid/contrastive": (costs[avoid].sum(), avoids),
                "follow/accuracy": (correct[~avoid].sum(), follows),
                "avoid/accuracy": (correct[avoid].sum(), avoids),
                "avoid/share": (avoids, follows + avoids),
            }
        )
        return torch.where(avoid, self.args.alpha * costs, costs).sum()


def _cringe_kernel(scores: Tensor, targets: Tensor, labels: Tensor, draws: Tensor, **more: Any) -> tuple[Tensor, ...]:
    return tuple(cringe_rows(scores, targets, labels, draws, **more))
