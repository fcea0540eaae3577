"""What both trainers share: rows in, a loss that is exact over the whole global batch, metrics that add up.

A trainer says how a row is tokenized (`tokenize_row`), how rows become a batch (`collate`), how many items of a batch
share its loss (`count_items`: tokens, or contexts) and what all of them cost together (`total_loss`). The loss of an
optimizer step is the sum over its batches, of all processes and all accumulation steps, divided by the items of all of
them: one batch of eight, eight of one, and two processes with four give the same gradient, unequal lengths included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Trainer
from trl import extract_prompt

from parlai_safety.errors import SafetyError
from parlai_safety.integrations.trl.scoring import Kernel, base_of, completion_rows
from parlai_safety.losses.rows import promoted


def setting(default: Any, help: str, **more: Any) -> Any:  # noqa: A002  the word that argparse uses
    """A field of a config: its default, and the sentence that `--help` shows."""
    return field(default=default, metadata={"help": help, **more})


class CompletionTrainer(Trainer):
    """A trainer on the completions of prompts; see the module for what a method says.

    Args:
        model: a causal language model, with adapters or without, or the name or folder of one.
        args: the method's config.
        train_dataset: a `datasets.Dataset`, an `IterableDataset` or a list of rows.
        eval_dataset: the same, or a dictionary of several.
        processing_class: the tokenizer; left out, that of the model's name.
        callbacks: as for `transformers.Trainer`.
        optimizers: as for `transformers.Trainer`.
        peft_config: adapters to put around the model, as for TRL's trainers.

    Raises:
        SafetyError: the model, a row or a setting is not of a kind that the trainer can take.
    """

    metric_names: tuple[str, ...] = ()
    """What is logged beside the loss; each is a mean, kept as a sum and a count."""
    train_dataset: Any
    eval_dataset: Any

    def __init__(
        self,
        model: Any,
        args: Any,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
    ) -> None:
        if isinstance(model, str):
            model = AutoModelForCausalLM.from_pretrained(model, **{"dtype": torch.float32, **(args.model_kwargs or {})})
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        _check_model(model)
        self._tokenizer = processing_class or AutoTokenizer.from_pretrained(model.config._name_or_path)
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._check_args(args)
        # The loss needs the rows' own columns, none of which is an argument of the model.
        args.remove_unused_columns = False
        if isinstance(train_dataset, IterableDataset):
            # Batches of several processes are not to be joined: they differ in length.
            args.accelerator_config.dispatch_batches = False
        super().__init__(
            model=model,
            args=args,
            data_collator=self.collate,
            train_dataset=self._prepared(args, train_dataset),
            eval_dataset=self._prepared(args, eval_dataset),
            processing_class=self._tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if self.args.n_gpu > 1:
            raise SafetyError(
                f"One process sees {self.args.n_gpu} GPUs",
                "The loss is taken inside the model's forward, which torch's DataParallel copies to each of them",
                "Type accelerate launch, or set CUDA_VISIBLE_DEVICES to one of them",
            )
        # The loss is normalized over the whole step by `compute_loss`; this keeps Trainer from dividing it again.
        self.model_accepts_loss_kwargs = True
        self._full_logits: dict[type[Any], bool] = {}
        self._totals = self._no_totals()

    # --- what a method says -----------------------------------------------------------------------------------------

    @staticmethod
    def tokenize_row(row: Mapping[str, Any], *, tokenizer: Any, args: Any) -> dict[str, Any]:
        """The columns that a row of the user's becomes."""
        raise NotImplementedError

    def collate(self, rows: list[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The tensors that tokenized rows become."""
        raise NotImplementedError(type(self).__name__)

    def count_items(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Scalar: how many items of a batch share its loss."""
        raise NotImplementedError(type(self).__name__)

    def total_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Scalar: what all items of a batch cost together."""
        raise NotImplementedError(type(self).__name__)

    def check_columns(self, columns: Iterable[str], args: Any) -> None:
        """Refuse a dataset that lacks what the method needs."""
        raise NotImplementedError(type(self).__name__)

    # --- data -------------------------------------------------------------------------------------------------------

    def _prepared(self, args: Any, dataset: Any) -> Any:
        """The dataset with token ids; one that has them is left as it is."""
        if dataset is None or isinstance(dataset, str):
            return dataset
        if isinstance(dataset, dict):
            return {name: self._prepared(args, part) for name, part in dataset.items()}
        if isinstance(dataset, list):
            dataset = Dataset.from_list(dataset)
        if "prompt_ids" in column_names(dataset):
            return dataset
        with args.main_process_first(local=False, desc="tokenizing"):
            dataset = self.known_format(dataset)
            columns = column_names(dataset)
            self.check_columns(columns, args)
            more = {} if isinstance(dataset, IterableDataset) else {"num_proc": args.dataset_num_proc}
            given = {"tokenizer": self._tokenizer, "args": args}
            return dataset.map(self.tokenize_row, fn_kwargs=given, remove_columns=columns, **more)

    def known_format(self, dataset: Any) -> Any:
        """A dataset in the method's own format, from another one of TRL's that holds the same."""
        return dataset

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `transformers.Trainer.evaluate`, for rows as they were given to the trainer."""
        found: dict[str, float] = super().evaluate(self._prepared(self.args, eval_dataset), *args, **kwargs)
        return found

    # --- the loss ---------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The batches of an optimizer step, and the number of items in them over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        items = torch.stack([self.count_items(batch) for batch in batches]).sum().to(device)
        return batches, self.accelerator.gather(items).sum()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The batch's share of the step's loss; without `num_items_in_batch` the mean over the batch's own items."""
        total = self.total_loss(model, inputs)
        if num_items_in_batch is None:
            loss = total / self.count_items(inputs).clamp(min=1)
        else:
            # Gradients are averaged over processes, and the loss of each is divided by the items of all.
            loss = total * (self.accelerator.num_processes / num_items_in_batch.clamp(min=1))
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The loss of a batch, and no predictions: scores over the vocabulary are never kept."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            total, items = self.total_loss(model, inputs), self.count_items(inputs)
        self.record({"loss": (total, items)})
        return total / items.clamp(min=1), None, None

    def rows_of(
        self, model: nn.Module, batch: dict[str, Tensor], kernel: Kernel, columns: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, ...]:
        """Ask about the tokens of the batch's completions; see `scoring.completion_rows`."""
        inner = self.accelerator.unwrap_model(model)
        kind = type(base_of(inner))
        if kind not in self._full_logits:
            self._full_logits[kind] = not self._head_is_all(model, inner)
        with self.accelerator.autocast():
            return completion_rows(
                model, inner, batch, kernel, columns, chunk=self.args.chunk_tokens, full_logits=self._full_logits[kind]
            )

    def _head_is_all(self, model: nn.Module, inner: Any) -> bool:
        """Whether the output layer alone makes the scores from the states, asked of two rows of eight tokens, once.

        Some models scale or squash scores after it. It is asked through the wrapper, so that sharded weights are whole,
        and of tokens that are the same in each process, so that all find the same. The rows part after four tokens; a
        model that tells them apart before that looks ahead, as encoders do, and is refused.
        """
        ids = torch.arange(8, device=self.args.device).repeat(2, 1)
        ids[1, 4:] = ids[1, :4]
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": torch.ones_like(ids) > 0}
        training = model.training
        model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            ours, theirs = (
                completion_rows(model, inner, batch, token_nll, full_logits=full_logits)[0]
                for full_logits in (False, True)
            )
        model.train(training)
        exact = theirs.dtype == torch.float64 or base_of(inner).dtype == torch.float32
        exact = exact and self.accelerator.mixed_precision == "no"
        close = partial(torch.allclose, atol=1e-4 if exact else 0.1, rtol=1e-4 if exact else 0.02)
        first, second = theirs.view(2, 7)[:, :3]
        if not close(first, second):
            raise SafetyError(
                f"{type(base_of(inner)).__name__} looks at tokens that come later",
                "It would see the token that it is to predict, as an encoder does, and learn to copy it",
                "Take a model that reads from left to right, or set is_decoder=True in its config",
            )
        same = close(ours, theirs)
        if not same:
            self.accelerator.print(
                f"{type(base_of(inner)).__name__} changes its scores after the output layer: they are computed for all "
                "tokens at once, which takes more memory."
            )
        return same

    # --- metrics ----------------------------------------------------------------------------------------------------

    @property
    def _counted(self) -> tuple[str, ...]:
        """The method's metrics, and the loss, which is counted in evaluation alone."""
        return (*self.metric_names, "loss")

    def record(self, sums: Mapping[str, tuple[Tensor, Tensor | int]]) -> None:
        """Add the sum and the count of each metric."""
        for name, (total, count) in sums.items():
            place = self._counted.index(name)
            self._totals[0, place] += total.detach()
            self._totals[1, place] += count

    def _no_totals(self) -> Tensor:
        kind = torch.float32 if self.args.device.type == "mps" else torch.float64
        return torch.zeros(2, len(self._counted), dtype=kind, device=self.args.device)

    def _metrics(self, prefix: str = "") -> dict[str, float]:
        """The means since the last call, over all processes; what was never counted is left out."""
        totals, counts = self.accelerator.reduce(self._totals, reduction="sum").tolist()
        self._totals = self._no_totals()
        table = zip(self._counted, totals, counts, strict=True)
        return {prefix + name: total / count for name, total, count in table if count}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the method's metrics beside the training loss."""
        super().log({**logs, **self._metrics()} if "loss" in logs else logs, *args, **kwargs)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate, with the method's metrics beside the loss; those of training are kept apart.

        The loss is that of all items together, whatever the size of the batches. Where the rows cannot be shared out
        evenly among several processes, accelerate fills up the last batch, and those rows count twice.
        """
        training, self._totals = self._totals, self._no_totals()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update(self._metrics(f"{metric_key_prefix}_"))
        self._totals = training
        return output

    def _check_args(self, args: Any) -> None:
        parallel = getattr(args, "parallelism_config", None)
        split = parallel is not None and max(parallel.tp_size, parallel.cp_size, getattr(parallel, "sp_size", 1)) > 1
        refused = {
            "torch_compile": (
                args.torch_compile,
                "the loss stands in for the model's forward, which would be compiled",
            ),
            "label_smoothing_factor": (args.label_smoothing_factor, "it belongs to Trainer's own cross-entropy"),
            "parallelism_config": (split, "tensor, context and sequence parallelism split what the loss looks at"),
        }
        for name, (wrong, why) in refused.items():
            if wrong:
                raise SafetyError(
                    f"{name} is {getattr(args, name)}",
                    f"{type(self).__name__} cannot use it: {why}",
                    f"Leave {name} out",
                )
        for name, least in (("max_length", 2), ("chunk_tokens", 1)):
            value = getattr(args, name)
            if value is not None and value < least:
                raise SafetyError(
                    f"{name} is {value}",
                    "A sequence is at least one token of the prompt and one of the completion, and a chunk one token",
                    f"Choose {least} or more, or leave it out",
                )


def column_names(dataset: Any) -> list[str]:
    """The columns of a dataset, a streamed one included; one without rows is refused."""
    known = dataset.column_names or next(iter(dataset), None)
    if known is None or (isinstance(dataset, Dataset) and not len(dataset)):
        raise SafetyError(
            "a dataset has no rows", "There is nothing to learn or to measure", "Give it rows, or leave it out"
        )
    return list(known)


def with_prompt(dataset: Any) -> Any:
    """A dataset of pairs whose common beginning, where they have no prompt, is one."""
    return dataset if "prompt" in column_names(dataset) else dataset.map(extract_prompt)


def token_nll(scores: Tensor, targets: Tensor) -> tuple[Tensor]:
    """-log p of each token: (n, V), (n,) -> (n,) nats, at least fp32."""
    return (F.cross_entropy(promoted(scores), targets, reduction="none"),)


def row_sums(values: Tensor, completion_mask: Tensor) -> Tensor:
    """Sums over the tokens of each row: (N,) values, (R, T) mask -> (R,)."""
    mask = completion_mask[:, 1:]
    return values.new_zeros(len(mask)).index_add(0, mask.nonzero()[:, 0], values)


def _check_model(model: Any) -> None:
    base = base_of(model)
    if not isinstance(base, PreTrainedModel) or base.config.is_encoder_decoder or base.get_output_embeddings() is None:
        raise SafetyError(
            f"the model is a {type(base).__name__}",
            "The trainers take causal language models, with a decoder and an output layer over the vocabulary",
            "Pass what AutoModelForCausalLM.from_pretrained gives, or its name",
        )
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        raise SafetyError(
            "the adapter adds virtual tokens to the prompt",
            "The loss looks at the decoder's states below the adapter, where they have no place",
            "Use an adapter within the layers, such as peft.LoraConfig",
        )
