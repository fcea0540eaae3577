"""Batches of fairseq with labels or pairs in them, and our losses on them. Needs torch, and neither fairseq nor ParlAI.

fairseq's data are lines of words, so the labels travel as words of the target line, which are taken out again here and
which the model never sees, neither as input nor as target:

- labelled data: each target line begins with `<pos>`, `<neg>` or `<none>`;
- pairs: a target line is the chosen reply, `<rejected>`, the rejected reply. A line without `<rejected>` is ordinary
  talk.

The words must be in the dictionary, as they are when `fairseq-preprocess` makes it from these lines. In data for a
language model (`--sample-break-mode eos`) a whole line follows its label; pairs need a source.

fairseq sums what criterions return over processes and accumulated batches, and divides by the sum of their sample
sizes. A loss whose denominator is the number of counted tokens therefore comes as a sum with that number, and is the
same however a batch is split. Unlikelihood has two denominators, and comes as the loss of its batch with sample size 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from parlai_safety.errors import SafetyError
from parlai_safety.losses.cringe import cringe_loss
from parlai_safety.losses.labels import TokenLabel
from parlai_safety.losses.pairwise import pairwise_cringe_loss
from parlai_safety.losses.unlikelihood import unlikelihood_loss

LABELS = {"<pos>": TokenLabel.POSITIVE, "<neg>": TokenLabel.NEGATIVE, "<none>": TokenLabel.PLAIN}
SEPARATOR = "<rejected>"


class Dictionary(Protocol):
    """What is asked of fairseq's dictionary."""

    def index(self, sym: str) -> int:
        """The id of a word, or that of `<unk>`."""

    def pad(self) -> int:
        """The id of `<pad>`."""

    def eos(self) -> int:
        """The id of `</s>`."""

    def unk(self) -> int:
        """The id of `<unk>`."""


class Step(NamedTuple):
    """What a criterion returns to fairseq."""

    loss: Tensor
    """Scalar with gradient, to be divided by the sum of the sample sizes."""
    sample_size: int
    """The share of this batch in the denominator."""
    log: dict[str, Any]
    """Sums for the log, in nats; `follow_*` of tokens to follow, `avoid_*` of tokens to avoid."""


class Labelled(NamedTuple):
    """A batch without its label words."""

    net_input: dict[str, Any]
    """Arguments of the model."""
    targets: Tensor
    """(B, T) int64."""
    labels: Tensor
    """(B,) values of `TokenLabel`."""
    mask: Tensor
    """(B, T) bool."""


class Pairs(NamedTuple):
    """B chosen replies and P rejected ones, as one batch of B + P rows, chosen first."""

    net_input: dict[str, Any]
    """Arguments of the model."""
    targets: Tensor
    """(B + P, T) int64."""
    mask: Tensor
    """(B + P, T) bool."""
    example: Tensor
    """(P,) int64: the chosen reply of each rejected one."""


def symbol_id(dictionary: Dictionary, symbol: str) -> int:
    """The id of a word that labels or parts replies.

    Raises:
        SafetyError: the dictionary has no such word.
    """
    found = int(dictionary.index(symbol))
    if found == dictionary.unk():
        raise SafetyError(
            f"The dictionary has no word {symbol!r}",
            "Labels travel as words of the target line, and this one would be read as <unk>",
            f"Let fairseq-preprocess make the dictionary from lines that have {symbol}, or add a line for it",
        )
    return found


def labelled_batch(sample: Mapping[str, Any], dictionary: Dictionary, label_ids: Mapping[int, TokenLabel]) -> Labelled:
    """Take the first word of each target line as its label.

    Args:
        sample: of a translation or a language modelling task, target padded on the right.
        dictionary: of the target.
        label_ids: id of a label word -> label.

    Raises:
        SafetyError: a line begins with another word, or such a word or the separator stands within it.
    """
    targets = sample["target"]
    marks = targets[:, 0].tolist()
    unknown = [mark for mark in marks if mark not in label_ids]
    if unknown:
        raise SafetyError(
            f"{len(unknown)} of {len(marks)} target lines of a batch begin with no label",
            f"The criterion must know what is to be followed and what avoided: a line begins with {', '.join(LABELS)}",
            "Write the label before each target line, preprocess it again, and train without --left-pad-target",
        )
    _refuse_marks(targets[:, 1:], dictionary, (*LABELS, SEPARATOR))
    net_input = dict(sample["net_input"])
    # A decoder's input is its target a step later, after </s>: the label stands second there. A language model's input
    # is called as an encoder's.
    name = "prev_output_tokens" if "prev_output_tokens" in net_input else "src_tokens"
    net_input[name] = torch.cat([net_input[name][:, :1], net_input[name][:, 2:]], dim=1)
    if name == "src_tokens" and net_input.get("src_lengths") is not None:
        net_input["src_lengths"] = net_input["src_lengths"] - 1
    labels = torch.tensor([label_ids[mark] for mark in marks], device=targets.device)
    return Labelled(net_input, targets[:, 1:], labels, targets[:, 1:] != dictionary.pad())


def pairs_batch(sample: Mapping[str, Any], dictionary: Dictionary, separator: int) -> Pairs:
    """Split target lines into chosen and rejected replies, each ended by `</s>`.

    Args:
        sample: of a translation task.
        dictionary: of the target.
        separator: id of `<rejected>`.

    Raises:
        SafetyError: the task has no source, or a line has the separator twice, a label or a reply without words.
    """
    net_input = dict(sample["net_input"])
    if "prev_output_tokens" not in net_input:
        raise SafetyError(
            "The batch has no prev_output_tokens, as language modelling has none",
            "A pair is two replies to one source, and a line of a language model has no source",
            "Train an encoder and decoder with --task translation, or use the criterion cringe with labelled lines",
        )
    targets, end, pad = sample["target"], dictionary.eos(), dictionary.pad()
    _refuse_marks(targets, dictionary, tuple(LABELS))
    chosen, rejected, example = [], [], []
    for place, row in enumerate(targets.tolist()):
        words = [word for word in row if word not in (end, pad)]
        parts = _split(words, separator)
        if len(parts) > 2 or not all(parts):
            raise SafetyError(
                f"A target line has {len(parts)} replies, of {', '.join(str(len(part)) for part in parts)} words",
                f"A line is one reply, or the chosen one, {SEPARATOR} and the rejected one, each with at least a word",
                "Mend the target file and run fairseq-preprocess again",
            )
        chosen.append([*parts[0], end])
        if len(parts) == 2:
            rejected.append([*parts[1], end])
            example.append(place)
    replies = [*chosen, *rejected]
    length = max(map(len, replies))
    rows = torch.tensor([reply + [pad] * (length - len(reply)) for reply in replies], device=targets.device)
    sources = torch.tensor([*range(len(chosen)), *example], device=targets.device)
    previous = torch.cat([rows.new_full((len(rows), 1), end), rows[:, :-1]], dim=1)
    # After </s> comes padding, in the decoder's input too.
    net_input["prev_output_tokens"] = torch.where(rows == pad, pad, previous)
    for name in ("src_tokens", "src_lengths"):
        net_input[name] = net_input[name][sources]
    return Pairs(net_input, rows, rows != pad, sources[len(chosen) :])


def _refuse_marks(targets: Tensor, dictionary: Dictionary, symbols: tuple[str, ...]) -> None:
    """Refuse words that would be trained as text, as the label of a second line in one row would."""
    for symbol in symbols:
        mark = int(dictionary.index(symbol))
        if mark != dictionary.unk() and bool((targets == mark).any()):
            raise SafetyError(
                f"The word {symbol!r} stands within a target line of a batch",
                "It would be learned as text, and what follows it under the label of another line",
                "Train a language model with --sample-break-mode eos, and write one kind of lines: labelled, or pairs",
            )


def cringe_step(
    model: Any, batch: Labelled, *, alpha: float, k: int, detach_positive: bool, generator: torch.Generator | None
) -> Step:
    """CRINGE (arXiv:2211.05826) on a labelled batch; the arguments are those of `cringe_loss`."""
    output = cringe_loss(
        _logits(model, batch.net_input),
        batch.targets,
        batch.labels,
        batch.mask,
        k=k,
        alpha=alpha,
        detach_positive=detach_positive,
        generator=generator,
    )
    tokens = int(batch.mask.sum())
    log = {
        "follow_loss": output.ce_tokens.detach().sum(),
        "follow_tokens": int(output.positive_mask.sum()),
        "avoid_loss": output.contrastive_tokens.detach().sum(),
        "avoid_tokens": int(output.negative_mask.sum()),
    }
    return _step(output.loss * tokens, tokens, tokens, len(batch.targets), log)


def unlikelihood_step(model: Any, batch: Labelled, *, alpha: float) -> Step:
    """Unlikelihood (arXiv:1911.03860) on a labelled batch; the arguments are those of `unlikelihood_loss`."""
    logits = _logits(model, batch.net_input)
    output = unlikelihood_loss(logits, batch.targets, batch.labels, batch.mask, alpha=alpha)
    log = {
        "follow_loss": output.likelihood_tokens.detach().sum(),
        "follow_tokens": int(output.follow_mask.sum()),
        "avoid_loss": output.unlikelihood_tokens.detach().sum(),
        "avoid_tokens": int(output.avoid_mask.sum()),
    }
    return _step(output.loss, 1, int(batch.mask.sum()), len(batch.targets), log)


def pairwise_cringe_step(
    model: Any,
    batch: Pairs,
    *,
    alpha: float,
    k: int,
    margin: float,
    temperature: float,
    generator: torch.Generator | None,
) -> Step:
    """Pairwise CRINGE (arXiv:2312.16682) on pairs; the arguments are those of `pairwise_cringe_loss`."""
    logits = _logits(model, batch.net_input)
    examples = len(batch.targets) - len(batch.example)
    chosen, rejected = slice(None, examples), slice(examples, None)
    output = pairwise_cringe_loss(
        logits[chosen],
        batch.targets[chosen],
        batch.mask[chosen],
        logits[rejected],
        batch.targets[rejected],
        batch.mask[rejected],
        example=batch.example,
        margin=margin,
        temperature=temperature,
        alpha=alpha,
        k=k,
        generator=generator,
    )
    # The loss's own denominator: a line has one pair at most, so every token counts once.
    counts = batch.mask.sum(-1)
    counted = int(counts.sum())
    log = {
        "follow_loss": output.chosen_tokens.detach().sum(),
        "follow_tokens": int(counts[chosen].sum()),
        "avoid_loss": output.rejected_tokens.detach().sum(),
        "avoid_tokens": int(counts[rejected].sum()),
        "margins": output.margins.sum(),
        "gates": output.gates.sum(),
        "pairs": len(batch.example),
    }
    return _step(output.loss * counted, counted, counted, examples, log)


def _step(loss: Tensor, sample_size: int, tokens: int, sentences: int, log: dict[str, Any]) -> Step:
    own = {"loss": loss.detach(), "ntokens": tokens, "nsentences": sentences, "sample_size": sample_size}
    return Step(loss, sample_size, {**own, **log})


def _split(words: list[int], separator: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for word in words:
        if word == separator:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _logits(model: Any, net_input: Mapping[str, Any]) -> Tensor:
    if getattr(getattr(model, "decoder", None), "adaptive_softmax", None) is not None:
        raise SafetyError(
            "The model has an adaptive softmax",
            "It has no score for each word at each place, which these losses compare",
            "Train without --adaptive-softmax-cutoff",
        )
    logits = model(**net_input)[0]
    assert isinstance(logits, Tensor)
    return logits
