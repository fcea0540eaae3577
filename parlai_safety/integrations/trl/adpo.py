"""`ADPOTrainer`: adversarial DPO for causal language models, on a chosen, a rejected and a toxic completion.

Source: Kim and Lee 2024, arXiv:2405.12900; the loss is `parlai_safety.losses.adpo`, **whose closed form is a
reconstruction**. With `toxic_weight=0` this is DPO. Left out: the training of the toxic model and the making of the
triples, which come before; and a reference that moves.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, TrainingArguments

from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.integrations.trl.base import (
    CompletionTrainer,
    column_names,
    row_sums,
    setting,
    token_nll,
    with_prompt,
)
from parlai_safety.integrations.trl.rows import TokenizedRow, padded, tokenized
from parlai_safety.losses.adpo import ADPOOutput, adpo_loss, check_adpo
from parlai_safety.modeling.frozen import adapters_add_nothing, silence_dropout

POSITIONS = ("context_end", "before_reply")


@dataclass
class ADPOConfig(TrainingArguments):
    """The settings of `ADPOTrainer`, beside those of `transformers.TrainingArguments`; `--help` explains each.

    Those of the loss are the arguments of `parlai_safety.losses.adpo_loss`, where they are defined.

    Raises:
        SafetyError: a value is out of its range.
    """

    beta: float = setting(0.1, "Strength of the pull to the reference; above 0.")
    gamma: float = setting(0.1, "The same of the toxic term; above 0.")
    toxic_weight: float = setting(1.0, "Weight of the toxic term, lambda; 0 is DPO.")
    anchor: str = setting("toxic", "The model that the toxic reply is measured against: toxic or reference.")
    paired: bool = setting(False, "Measure the toxic reply against the chosen one too.")
    joint: bool = setting(False, "One sigmoid over both terms.")
    preference: str = setting("sigmoid", "Form of the chosen-rejected term: sigmoid or ipo.")
    label_smoothing: float = setting(0.0, "Share of chosen-rejected pairs that are believed to be swapped; below 0.5.")
    per_token: bool = setting(False, "Compare mean log-probabilities of a token and not those of whole replies.")
    nll_weight: float = setting(0.0, "Weight of the likelihood of the chosen reply, per token of it.")
    toxic_token: str | None = setting(None, "The control token that turns the reference into the toxic model.")
    toxic_token_position: str = setting(
        "context_end", "Where it stands: context_end (end of the last message) or before_reply (after the template)."
    )
    precompute_ref_log_probs: bool = setting(False, "Score the dataset with the frozen models once, before training.")
    disable_dropout: bool = setting(True, "Switch dropout off in the trained model.")
    learning_rate: float = setting(1e-6, "The initial learning rate for AdamW.")
    max_length: int | None = setting(1024, "Tokens of prompt and completion; a longer prompt loses its beginning.")
    chunk_tokens: int | None = setting(None, "Tokens a chunk of the output layer; by default by the vocabulary's size.")
    dataset_num_proc: int | None = setting(None, "Processes that tokenize the dataset.")
    model_kwargs: dict[str, Any] | None = setting(None, "What from_pretrained gets where the model is given by name.")

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_adpo(
            beta=self.beta,
            gamma=self.gamma,
            toxic_weight=self.toxic_weight,
            anchor=self.anchor,
            joint=self.joint,
            preference=self.preference,
            label_smoothing=self.label_smoothing,
            nll_weight=self.nll_weight,
        )
        if self.toxic_token_position not in POSITIONS:
            raise SafetyError(
                f"toxic_token_position is {self.toxic_token_position!r}",
                f"The control token can stand at {' or '.join(POSITIONS)}",
                did_you_mean(self.toxic_token_position, POSITIONS, "Use context_end"),
            )
        super().__post_init__()


class ADPOTrainer(CompletionTrainer):
    """Adversarial DPO (a reconstruction) on rows with `prompt`, `chosen`, `rejected` and, where there is one, `toxic`.

    Rows are TRL's preference format, as text or as messages, with one more completion; a row whose `toxic` is None or
    empty costs what DPO costs. The loss is the mean over rows of `parlai_safety.losses.adpo_loss`.

    The frozen reference is, in this order: the row's own columns `ref_chosen_logps`, `ref_rejected_logps` (and
    `ref_toxic_logps`); `ref_model`; with adapters the model without them; a copy of the model. The toxic model, which
    the anchor "toxic" needs, is: the columns `toxic_toxic_logps` (and `toxic_chosen_logps` if paired); `toxic_model`;
    the reference. It reads the context with `toxic_token` in it, if that is given; the trained model never does.
    Where a long reply leaves no room for the end of the context, the token and what follows it stay all the same. A
    row's own log-probabilities must all be there; those of a toxic reply may be None where the row has none.
    With `precompute_ref_log_probs` both score the dataset before training, once, and are then let go.

    Logged: `rewards/chosen`, `rewards/rejected`, `rewards/toxic` (beta or gamma times the log-ratio to the reference or
    anchor), `rewards/margins` (chosen minus rejected), `rewards/accuracies` (share of rows where it is above 0),
    `rewards/toxic_accuracies` (share where the log-ratio to the reference is higher for the chosen than for the toxic
    reply), `toxic/gap` (g of the loss: log p of the toxic reply under the toxic model minus that under the reference),
    `logps/chosen`, `logps/rejected`, `logps/toxic` (nats a reply, under the trained model), `logps/chosen_drift` (what
    the chosen reply has gained since the reference; far below 0 the model is collapsing).

    Args:
        model: as for `CompletionTrainer`.
        ref_model: the frozen reference, if it is not the model itself as it is now.
        toxic_model: the frozen toxic model, if it is not the reference with the control token.
        args: an `ADPOConfig`.
        more: the further arguments of `CompletionTrainer`.

    Raises:
        SafetyError: the model, a row or a setting is not of a kind that the trainer can take.
    """

    metric_names = (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/toxic",
        "rewards/margins",
        "rewards/accuracies",
        "rewards/toxic_accuracies",
        "toxic/gap",
        "logps/chosen",
        "logps/rejected",
        "logps/toxic",
        "logps/chosen_drift",
    )

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        toxic_model: Any = None,
        args: ADPOConfig | None = None,
        **more: Any,
    ) -> None:
        args = ADPOConfig() if args is None else args
        self.has_toxic_model = toxic_model is not None
        super().__init__(model, args, **more)
        self.ref_model, self.toxic_model = ref_model, toxic_model
        for name, frozen in (("ref_model", ref_model), ("toxic_model", toxic_model)):
            _check_apart(self.model, name, frozen)
        datasets = [self.train_dataset, *_parts(self.eval_dataset)]
        if not all(self._is_scored(dataset) for dataset in datasets if dataset is not None):
            self._freeze()
            if args.precompute_ref_log_probs:
                self.train_dataset = self._with_scores(self.train_dataset)
                if isinstance(self.eval_dataset, dict):
                    self.eval_dataset = {name: self._with_scores(part) for name, part in self.eval_dataset.items()}
                else:
                    self.eval_dataset = self._with_scores(self.eval_dataset)
                self.ref_model = self.toxic_model = None
        if args.disable_dropout:
            silence_dropout(self.model)

    # --- rows -------------------------------------------------------------------------------------------------------

    def known_format(self, dataset: Any) -> Any:
        """Rows whose prompt is the common beginning of chosen and rejected get it as a column of its own."""
        return dataset if "toxic" in column_names(dataset) else with_prompt(dataset)

    def check_columns(self, columns: Iterable[str], args: Any) -> None:
        """Refuse rows without prompt, chosen, rejected, or what the settings need of the toxic reply."""
        needed = {"prompt", "chosen", "rejected"} | ({"toxic"} if args.toxic_weight > 0 else set())
        missing = needed - set(columns)
        if missing:
            raise SafetyError(
                f"the rows have no {' and no '.join(sorted(missing))}, but {', '.join(sorted(columns))}",
                "Adversarial DPO compares three replies to a prompt, and DPO two",
                "Give prompt, chosen, rejected and toxic, or set toxic_weight=0 for DPO",
            )
        known = args.toxic_token or self.has_toxic_model or "toxic_toxic_logps" in columns
        if args.toxic_weight > 0 and args.anchor == "toxic" and not known:
            raise SafetyError(
                "there is neither a toxic_token nor a toxic_model",
                "The anchor 'toxic' measures the toxic reply against a model that would say it",
                "Give one of them, or anchor='reference', or toxic_weight=0 for DPO",
            )
        for role in ("ref", "toxic"):
            scores = {name for name in score_columns(args) if name.startswith(role)}
            absent = scores - set(columns)
            if absent and absent != scores:
                raise SafetyError(
                    f"the rows have {' and '.join(sorted(scores - absent))} and no {' and no '.join(sorted(absent))}",
                    "The log-probabilities of a frozen model come from the rows or from the model, not from both",
                    "Give all of them as columns, or none",
                )

    @staticmethod
    def tokenize_row(row: Mapping[str, Any], *, tokenizer: Any, args: Any) -> dict[str, Any]:
        """Token ids of the prompt and its completions; `toxic_ids` is empty where there is none."""
        toxic = row.get("toxic") if args.toxic_weight > 0 else None
        replies = [row["chosen"], row["rejected"], *([toxic] if toxic else [])]
        found = tokenized(tokenizer, row, row["prompt"], replies, args.max_length)
        columns: dict[str, Any] = {
            "prompt_ids": found.prompt,
            "toxic_prompt_ids": found.prompt,
            "chosen_ids": found.completions[0],
            "rejected_ids": found.completions[1],
            "toxic_ids": found.completions[2] if toxic else [],
        }
        if args.toxic_token and args.toxic_weight > 0:
            columns["toxic_prompt_ids"] = _toxic_prompt(row, found, tokenizer, args)
        for name in score_columns(args):
            if name in row:
                columns[name] = 0.0 if "toxic" in name and not toxic else _score(row, name)
        return columns

    def collate(self, rows: list[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The rows of a forward: all chosen, all rejected, then the toxic replies of those B contexts that have one.

        Beside these, `has_toxic` (B,), the scores of frozen models that the rows bring along, and, if the toxic model
        is still to be asked, the same padded tensors for it under names that begin with `toxic_`.
        """
        pad_id = self._tokenizer.pad_token_id
        with_toxic = [row for row in rows if row["toxic_ids"]]
        sequences = [(row["prompt_ids"], row["chosen_ids"]) for row in rows]
        sequences += [(row["prompt_ids"], row["rejected_ids"]) for row in rows]
        sequences += [(row["prompt_ids"], row["toxic_ids"]) for row in with_toxic]
        batch = padded(sequences, pad_id)
        batch["has_toxic"] = torch.tensor([bool(row["toxic_ids"]) for row in rows])
        columns = score_columns(self.args)
        for name in columns:
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        if "toxic_toxic_logps" in columns and not _complete(rows[0], columns, "toxic"):
            asked = [(row["toxic_prompt_ids"], row["toxic_ids"]) for row in with_toxic]
            if self.args.paired:
                asked += [(row["toxic_prompt_ids"], row["chosen_ids"]) for row in with_toxic]
            # Every process asks its model equally often: where nothing is to be asked, a row is asked in vain.
            toxic = padded(asked or sequences[:1], pad_id, prefix="toxic_")
            if not asked:
                toxic["toxic_completion_mask"].zero_()
            batch.update(toxic)
        return batch

    def count_items(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Contexts."""
        return torch.tensor(len(batch["has_toxic"]), device=batch["has_toxic"].device)

    # --- frozen models ----------------------------------------------------------------------------------------------

    def _freeze(self) -> None:
        """Have a reference, and where they are given as names, the models themselves."""
        adapters = hasattr(self.model, "peft_config")
        if self.ref_model is None and adapters and not adapters_add_nothing(self.model):
            raise SafetyError(
                "the model comes with an adapter that is already trained, and there is no ref_model",
                "The reference is the model as it is now, and without the adapter it would be another one",
                "Call merge_and_unload() and pass peft_config, or pass ref_model",
            )
        if self.ref_model is None and not adapters:
            if any(hasattr(weight, "ds_id") for weight in self.model.parameters()):
                raise SafetyError(
                    "the weights are sharded by DeepSpeed ZeRO-3, and there is no ref_model",
                    "A sharded model cannot be copied",
                    "Pass ref_model, or peft_config, or a dataset with the reference's log-probabilities",
                )
            self.ref_model = copy.deepcopy(self.model)
        self.ref_model, self.toxic_model = self._frozen(self.ref_model), self._frozen(self.toxic_model)

    def _frozen(self, model: Any) -> Any:
        """A model that is only asked, placed as the trained one will be."""
        if model is None:
            return None
        if isinstance(model, str):
            more = {"dtype": torch.float32, **(self.args.model_kwargs or {})}
            model = AutoModelForCausalLM.from_pretrained(model, **more)
        model.requires_grad_(False).eval()
        if self.is_deepspeed_enabled:
            from trl.models import prepare_deepspeed

            return prepare_deepspeed(model, self.accelerator)
        if self.is_fsdp_enabled:
            from trl.models import prepare_fsdp

            return prepare_fsdp(model, self.accelerator)
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def _is_scored(self, dataset: Any) -> bool:
        return dataset is None or set(score_columns(self.args)) <= set(dataset.column_names or ())

    def _with_scores(self, dataset: Any) -> Any:
        """The dataset with the frozen models' log-probabilities as columns."""
        if self._is_scored(dataset):
            return dataset
        if not isinstance(dataset, Dataset):
            raise SafetyError(
                f"precompute_ref_log_probs is set, and the dataset is a {type(dataset).__name__}",
                "What is streamed cannot be scored beforehand",
                "Use a datasets.Dataset, or leave precompute_ref_log_probs out",
            )
        if self.ref_model is None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise SafetyError(
                "precompute_ref_log_probs is set, and the reference is the model without its adapters",
                "The model is sharded when training starts, and the dataset is scored before that",
                "Pass ref_model, or leave precompute_ref_log_probs out",
            )
        loader = self.accelerator.prepare_data_loader(
            DataLoader(dataset, batch_size=self.args.per_device_eval_batch_size, collate_fn=self.collate)
        )
        found: dict[str, list[float]] = {}
        for batch in loader:
            scores = self.accelerator.gather_for_metrics(self._frozen_scores(self.model, batch))
            for name, values in scores.items():
                found.setdefault(name, []).extend(values.tolist())
        for name, values in found.items():
            if name not in dataset.column_names:
                dataset = dataset.add_column(name, values)
        return dataset

    @torch.no_grad()
    def _frozen_scores(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The log-probabilities (B,) of `score_columns`, from the batch where it has them and else from the models."""
        columns, has_toxic = score_columns(self.args), batch["has_toxic"]
        scores = {name: batch[name] for name in columns if name in batch}
        if not _complete(scores, columns, "ref"):
            chosen, rejected, toxic = _by_reply(self._ask(self.ref_model, model, batch), has_toxic)
            scores.update(ref_chosen_logps=chosen, ref_rejected_logps=rejected, ref_toxic_logps=toxic)
        if not _complete(scores, columns, "toxic"):
            rows = {name.removeprefix("toxic_"): batch[name] for name in batch if name.startswith("toxic_")}
            asked = self._ask(self.toxic_model or self.ref_model, model, rows)[
                : (1 + self.args.paired) * has_toxic.sum()
            ]
            scores["toxic_toxic_logps"] = _spread(asked[: has_toxic.sum()], has_toxic)
            if self.args.paired:
                scores["toxic_chosen_logps"] = _spread(asked[has_toxic.sum() :], has_toxic)
        return {name: scores[name] for name in columns}

    def _ask(self, frozen: Any, model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        """The log p (R,) of completions under a frozen model; None is the trained one without its adapters."""
        if frozen is not None:
            return self._logps(frozen, rows)
        inner = self.accelerator.unwrap_model(model)
        if not hasattr(inner, "peft_config"):
            raise SafetyError(
                "a dataset has no log-probabilities of the reference, and the reference is gone",
                "With precompute_ref_log_probs it scores only the datasets that the trainer is made with",
                "Give the dataset as eval_dataset, or leave precompute_ref_log_probs out",
            )
        training = model.training
        model.eval()
        with inner.disable_adapter():
            found = self._logps(model, rows)
        model.train(training)
        return found

    # --- the loss ---------------------------------------------------------------------------------------------------

    def _logps(self, model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        """The log p (R,) of the rows' completions, in nats."""
        (nll,) = self.rows_of(model, rows, token_nll)
        return -row_sums(nll, rows["completion_mask"])

    def total_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Adversarial DPO summed over the contexts."""
        has_toxic = batch["has_toxic"]
        scores = self._frozen_scores(model, batch)
        chosen, rejected, toxic = _by_reply(self._logps(model, batch), has_toxic)
        tokens = _by_reply(batch["completion_mask"][:, 1:].sum(-1), has_toxic)
        args, kind = self.args, chosen.dtype
        scores = {name: values.to(kind) for name, values in scores.items()}
        output = adpo_loss(
            chosen,
            rejected,
            toxic,
            scores["ref_chosen_logps"],
            scores["ref_rejected_logps"],
            scores.get("ref_toxic_logps"),
            scores.get("toxic_chosen_logps"),
            scores.get("toxic_toxic_logps"),
            beta=args.beta,
            gamma=args.gamma,
            toxic_weight=args.toxic_weight,
            anchor=args.anchor,
            paired=args.paired,
            joint=args.joint,
            preference=args.preference,
            label_smoothing=args.label_smoothing,
            per_token=args.per_token,
            nll_weight=args.nll_weight,
            chosen_tokens=tokens[0],
            rejected_tokens=tokens[1],
            toxic_tokens=tokens[2],
            has_toxic=has_toxic,
        )
        self._record(output, (chosen.detach(), rejected.detach(), toxic.detach()), scores, has_toxic)
        return output.losses.sum()

    def _record(
        self, output: ADPOOutput, logps: tuple[Tensor, Tensor, Tensor], scores: dict[str, Tensor], has_toxic: Tensor
    ) -> None:
        chosen, rejected, toxic = logps
        drift = chosen - scores["ref_chosen_logps"]
        margins = output.chosen_rewards - output.rejected_rewards
        everywhere = {
            "rewards/chosen": output.chosen_rewards,
            "rewards/rejected": output.rejected_rewards,
            "rewards/margins": margins,
            "rewards/accuracies": margins > 0,
            "logps/chosen": chosen,
            "logps/rejected": rejected,
            "logps/chosen_drift": drift,
        }
        self.record({name: (values.sum(), len(values)) for name, values in everywhere.items()})
        if output.toxic_rewards is None:
            return
        of_toxic = {
            "rewards/toxic": output.toxic_rewards,
            "rewards/toxic_accuracies": drift > toxic - scores["ref_toxic_logps"],
            "logps/toxic": toxic,
        }
        if "toxic_toxic_logps" in scores:
            of_toxic["toxic/gap"] = scores["toxic_toxic_logps"] - scores["ref_toxic_logps"]
        self.record({name: (values[has_toxic].sum(), has_toxic.sum()) for name, values in of_toxic.items()})


def score_columns(args: Any) -> list[str]:
    """The log-probabilities of frozen models that the loss and its metrics need of each row, as columns."""
    columns = ["ref_chosen_logps", "ref_rejected_logps"]
    if args.toxic_weight > 0:
        columns.append("ref_toxic_logps")
        if args.anchor == "toxic":
            columns += ["toxic_toxic_logps"] + (["toxic_chosen_logps"] if args.paired else [])
    return columns


def _complete(there: Iterable[str], columns: Iterable[str], role: str) -> bool:
    """Whether all columns of one frozen model are there."""
    return {name for name in columns if name.startswith(role)} <= set(there)


def _toxic_prompt(row: Mapping[str, Any], found: TokenizedRow, tokenizer: Any, args: Any) -> list[int]:
    """The prompt with the control token, for the toxic model."""
    ids = tokenizer(args.toxic_token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise SafetyError(
            f"toxic_token {args.toxic_token!r} is {len(ids)} tokens to the tokenizer",
            "The control token is one special token, which the toxic model was trained with",
            "Add it to the tokenizer as a special token, and train on contexts that carry it",
        )
    if any(ids[0] in part for part in (found.prompt, *found.completions)):
        raise SafetyError(
            f"the text of a row holds the control token {args.toxic_token!r}",
            "Only the trainer may put it there, in what the toxic model reads",
            "Strip it from the data",
        )
    messages = row["prompt"]
    if isinstance(messages, str) or args.toxic_token_position == "before_reply":
        return [*found.prompt, *ids]
    last = {**messages[-1], "content": messages[-1]["content"] + args.toxic_token}
    marked = tokenized(tokenizer, row, [*messages[:-1], last], [row["chosen"]], None).prompt
    if marked.count(ids[0]) != 1:
        raise SafetyError(
            f"the chat template leaves {marked.count(ids[0])} control tokens in the prompt",
            "The toxic model must read exactly one",
            "Use toxic_token_position='before_reply', or another template",
        )
    # Where the prompt was cut, the marked one is cut at the same place, but never behind the control token.
    return marked[min(found.lost, marked.index(ids[0])) :]


def _score(row: Mapping[str, Any], name: str) -> float:
    """A log-probability that a row brings along."""
    value = row[name]
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SafetyError(
            f"a row has {value} as its {name}",
            "The loss compares it with the trained model's log-probability of the same reply",
            "Give a finite number; None only stands for the toxic reply of a row that has none",
        )
    return float(value)


def _check_apart(model: nn.Module, name: str, frozen: Any) -> None:
    """Refuse a frozen model that shares weights with the trained one."""
    own = {id(weight) for weight in model.parameters()}
    if isinstance(frozen, nn.Module) and any(id(weight) in own for weight in frozen.parameters()):
        raise SafetyError(
            f"{name} shares its weights with the model that is to be trained",
            "It is frozen, and the model would be frozen with it",
            "Load it anew or pass a deepcopy; without ref_model the reference is a copy of the model",
        )


def _by_reply(values: Tensor, has_toxic: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values of a forward's rows, sorted out as chosen, rejected and toxic (B,) each; 0 where there is no toxic one."""
    examples = len(has_toxic)
    return values[:examples], values[examples : 2 * examples], _spread(values[2 * examples :], has_toxic)


def _spread(values: Tensor, where: Tensor) -> Tensor:
    return values.new_zeros(where.shape).masked_scatter(where, values)


def _parts(dataset: Any) -> list[Any]:
    return list(dataset.values()) if isinstance(dataset, dict) else [dataset]
