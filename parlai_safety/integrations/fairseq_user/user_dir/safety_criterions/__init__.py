"""Registers `--criterion cringe`, `unlikelihood` and `pairwise_cringe` with fairseq, which imports this folder."""

# No postponed annotations here: fairseq makes its flags from the types of a dataclass's fields, and wants no strings.
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq import utils  # type: ignore[import-not-found]
from fairseq.criterions import FairseqCriterion, register_criterion  # type: ignore[import-not-found]
from fairseq.dataclass import FairseqDataclass  # type: ignore[import-not-found]

from parlai_safety.integrations.fairseq_user.batches import (
    LABELS,
    SEPARATOR,
    Step,
    cringe_step,
    labelled_batch,
    pairs_batch,
    pairwise_cringe_step,
    symbol_id,
    unlikelihood_step,
)

try:
    from fairseq.logging import metrics  # type: ignore[import-not-found]
except ImportError:  # before 0.12
    from fairseq import metrics

_PARTS = ("follow", "avoid")


@dataclass
class CringeConfig(FairseqDataclass):
    """Options of `--criterion cringe`; flags and meanings are those of `-m safety:cringe`."""

    cringe_alpha: float = field(default=1.0, metadata={"help": "weight of the contrastive part"})
    cringe_k: int = field(default=1, metadata={"help": "candidates for the token preferred to a negative one"})
    cringe_detach_positive: bool = field(default=False, metadata={"help": "stop the gradient through that token"})
    cringe_seed: int = field(default=0, metadata={"help": "seed of the sampling where k > 1; the rank is added"})


@dataclass
class UnlikelihoodConfig(FairseqDataclass):
    """Options of `--criterion unlikelihood`."""

    unlikelihood_alpha: float = field(default=1.0, metadata={"help": "weight of the unlikelihood part"})


@dataclass
class PairwiseCringeConfig(FairseqDataclass):
    """Options of `--criterion pairwise_cringe`."""

    cringe_alpha: float = field(default=1.0, metadata={"help": "weight of the contrastive part"})
    cringe_k: int = field(default=1, metadata={"help": "candidates for the token preferred to a rejected one"})
    cringe_seed: int = field(default=0, metadata={"help": "seed of the sampling where k > 1; the rank is added"})
    pairwise_margin: float = field(default=0.0, metadata={"help": "b: how far a chosen reply should be ahead, in nats"})
    pairwise_temperature: float = field(default=10.0, metadata={"help": "tau: width of the soft margin, in nats"})


class _Criterion(FairseqCriterion):  # type: ignore[misc]
    """What the three share: the configuration, the draws, the log."""

    def __init__(self, task: Any, cfg: Any) -> None:
        super().__init__(task)
        self.cfg = cfg
        self.words = task.target_dictionary
        self._generator: torch.Generator | None = None

    def generator(self, device: torch.device) -> torch.Generator:
        """The source of the draws, made at first use; after a restart of training it begins anew."""
        if self._generator is None:
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            self._generator = torch.Generator(device).manual_seed(self.cfg.cringe_seed + rank)
        return self._generator

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log means in bits, as fairseq does; `ppl` is that of the tokens to follow."""
        sums = {
            name: sum(float(log.get(name, 0)) for log in logging_outputs)
            for name in {name for log in logging_outputs for name in log}
        }
        size = sums["sample_size"]
        metrics.log_scalar("loss", sums["loss"] / max(size, 1) / math.log(2), size, round=3)
        for part in _PARTS:
            tokens = sums[f"{part}_tokens"]
            if tokens:
                metrics.log_scalar(f"{part}_loss", sums[f"{part}_loss"] / tokens / math.log(2), tokens, round=3)
        if sums["follow_tokens"]:
            metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["follow_loss"].avg))
        pairs = sums.get("pairs", 0)
        if pairs:
            metrics.log_scalar("margin", sums["margins"] / pairs, pairs, round=3)
            metrics.log_scalar("gate", sums["gates"] / pairs, pairs, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """They are sums."""
        return True


class _Labelled(_Criterion):
    def __init__(self, task: Any, cfg: Any) -> None:
        super().__init__(task, cfg)
        self.label_ids = {symbol_id(self.words, word): label for word, label in LABELS.items() if word in self.words}
        if not self.label_ids:
            symbol_id(self.words, "<neg>")


@register_criterion("cringe", dataclass=CringeConfig)
class CringeCriterion(_Labelled):
    """CRINGE on target lines that begin with their label."""

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> Step:
        """The sum over a batch, its counted tokens, the log."""
        batch = labelled_batch(sample, self.words, self.label_ids)
        return cringe_step(
            model,
            batch,
            alpha=self.cfg.cringe_alpha,
            k=self.cfg.cringe_k,
            detach_positive=self.cfg.cringe_detach_positive,
            generator=self.generator(batch.targets.device),
        )


@register_criterion("unlikelihood", dataclass=UnlikelihoodConfig)
class UnlikelihoodCriterion(_Labelled):
    """Unlikelihood on target lines that begin with their label."""

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> Step:
        """The loss of a batch, one, the log."""
        batch = labelled_batch(sample, self.words, self.label_ids)
        return unlikelihood_step(model, batch, alpha=self.cfg.unlikelihood_alpha)


@register_criterion("pairwise_cringe", dataclass=PairwiseCringeConfig)
class PairwiseCringeCriterion(_Criterion):
    """Pairwise CRINGE on target lines of a chosen and a rejected reply."""

    def __init__(self, task: Any, cfg: Any) -> None:
        super().__init__(task, cfg)
        self.separator = symbol_id(self.words, SEPARATOR)

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> Step:
        """The sum over a batch, its counted tokens, the log."""
        batch = pairs_batch(sample, self.words, self.separator)
        return pairwise_cringe_step(
            model,
            batch,
            alpha=self.cfg.cringe_alpha,
            k=self.cfg.cringe_k,
            margin=self.cfg.pairwise_margin,
            temperature=self.cfg.pairwise_temperature,
            generator=self.generator(batch.targets.device),
        )
