"""A judge that reads whole conversations: hashed n-grams of each turn, and a recurrent network over the turns.

Each turn's words 1-2-grams and characters 2-5-grams are hashed to 2**14 columns each and weighted as in
`parlai_safety.judges.features`. A bag of column vectors (Joulin et al. 2017, arXiv:1607.01759) and the speaker make the
turn's vector, a GRU (Cho et al. 2014, arXiv:1406.1078) reads the turns before it, and a linear path of columns stands
beside both (wide and deep, Cheng et al. 2016, arXiv:1606.07792). Each speaker has an output of its own. Every labelled
turn of a conversation trains it at once; ordinary talk counts as safe at a small weight.

It was put together here and is no method of a paper that this project implements; `projects/safety_recipes/judges.md`
says what it was measured to be worth: made for bot turns of adversarial talk, it is a weak judge of anything else. A
judge may be the mean of several networks of different seeds, and its file takes about six megabytes for each. Left out:
pretrained vectors, the order of words beyond n-grams, a threshold for each speaker, and talk of more than two: the
speakers are taken to alternate, counted back from the reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from parlai_safety.archive import ArchiveFormat, array_digest
from parlai_safety.errors import SafetyError
from parlai_safety.judges.card import MARKS
from parlai_safety.judges.data import Example, conversation_marks, folds, is_ordinary
from parlai_safety.judges.features import TOKEN, hashed_counts, sigmoid, unit_rows
from parlai_safety.judges.quality import threshold_at_false_positive_rate as highest_ordinary_threshold
from parlai_safety.judges.quality import youden_threshold
from parlai_safety.judges.verdict import Speaker, Verdict, check_threshold, fingerprint_of, judged

FORMAT, VERSION = "parlai_safety turn judge", 1
FOLDS = 5
COLUMNS, WIDTH, HIDDEN = 2**14, 48, 64
WEIGHTS = 2 * COLUMNS * (WIDTH + 2) + HIDDEN * (WIDTH + 3) + 6 * HIDDEN * (HIDDEN + 1) + 2 * (2 * HIDDEN + 4)
EPOCHS, BATCH, RATE = 6, 16, 3e-3
ORDINARY_MOST, ORDINARY_TURNS, ORDINARY_BATCH, ORDINARY_WEIGHT = 1500, 9, 4, 0.05
SCORED_AT_ONCE = 64
ARCHIVE = ArchiveFormat(
    FORMAT,
    VERSION,
    "parlai safety_judges --kind turns --out FOLDER",
    {"threshold": float, "facts": dict},
    {"idf": (2, COLUMNS), "weights": (None, WEIGHTS)},
)


class TurnNetwork(nn.Module):
    """Logits of being unsafe for each turn of B conversations of at most T turns, from the turns up to that one.

    Args:
        context: False trains it without the turns before; what `train_turns` makes of it reads none either.
    """

    def __init__(self, context: bool = True) -> None:
        super().__init__()
        self.context = context
        self.deep = nn.EmbeddingBag(2 * COLUMNS, WIDTH, mode="sum")
        self.wide = nn.EmbeddingBag(2 * COLUMNS, 2, mode="sum")
        nn.init.normal_(self.deep.weight, std=0.02)
        nn.init.zeros_(self.wide.weight)
        self.turn = nn.Linear(WIDTH + 2, HIDDEN)
        self.before = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.out = nn.Linear(2 * HIDDEN + 3, 2)

    def forward(self, rows: Any, speakers: Tensor, at: Tensor) -> Tensor:
        """Logits of N turns.

        Args:
            rows: the turns' features, sparse, shape (N, 2 * COLUMNS).
            speakers: 0 = human, 1 = bot; shape (N,).
            at: which turn stands where, -1 after the last one of a conversation; shape (B, T).

        Returns:
            Shape (B, T); where `at` is -1 it means nothing.
        """
        columns, starts = torch.from_numpy(rows.indices).long(), torch.from_numpy(rows.indptr[:-1]).long()
        values = torch.from_numpy(rows.data)
        kept = F.dropout(values, 0.1, self.training)
        who = F.one_hot(speakers, 2).float()
        deep = F.dropout(self.deep(columns, starts, per_sample_weights=kept), 0.5, self.training)
        turn = F.dropout(torch.relu(self.turn(torch.cat([who, deep], 1))), 0.5, self.training)
        place = at.clamp(min=0)
        turns = turn[place] * (at >= 0)[..., None]
        states, _ = self.before(turns)
        before = F.dropout(F.pad(states, (0, 0, 1, 0))[:, :-1], 0.5, self.training) * float(self.context)
        number = (torch.arange(at.shape[1]) / 10).expand(at.shape)[..., None]
        logits = self.out(torch.cat([turns, before, who[place], number], -1))
        logits = logits + 4 * self.wide(columns, starts, per_sample_weights=values)[place]
        found: Tensor = logits.gather(2, speakers[place][..., None])[..., 0]
        return found


class TurnJudge:
    """A trained judge; made by `train_turns` or `TurnJudge.load`.

    Args:
        idf: inverse document frequencies of words and of characters, shape (2, 2**14), float64.
        weights: the parameters of S networks, a row each, shape (S, WEIGHTS), float32.
        threshold: a reply with p_unsafe >= threshold is unsafe; strictly between 0 and 1.
        facts: what the header says of the training: seed, counts, sources, marks of the conversations.
        path: the file it was read from or saved to; None before that.
    """

    def __init__(
        self,
        idf: NDArray[Any],
        weights: NDArray[np.float32],
        threshold: float,
        facts: dict[str, Any],
        path: str | Path | None = None,
    ) -> None:
        self.idf, self.weights = idf, np.ascontiguousarray(weights, dtype=np.float32)
        self.threshold, self.facts = check_threshold(threshold), facts
        self.networks = [_network(row) for row in self.weights]
        self._name(path)

    @cached_property
    def fingerprint(self) -> str:
        """Of the arrays and the version of the format."""
        return fingerprint_of("turns", VERSION, arrays=[array_digest(array) for array in (self.idf, self.weights)])

    def score(
        self, replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]
    ) -> list[Verdict]:
        """Judge a batch by the replies, all turns of their contexts and the speakers; see `Judge.score`.

        p_unsafe is the sigmoid of the networks' mean logit. Another batch may change it by rounding, about 1e-7.
        """
        return judged(replies, contexts, speakers, self._probabilities)

    def save(self, path: str | Path) -> None:
        """Write the judge to one file, which appears when it is complete. The same judge gives the same bytes."""
        ARCHIVE.write(path, self, probe=self._probe())
        self._name(path)

    @classmethod
    def load(cls, path: str | Path, *, threshold: float | None = None) -> TurnJudge:
        """Read a judge that `save` wrote.

        Args:
            path: the file.
            threshold: replaces the stored threshold.

        Raises:
            SafetyError: the file is missing, damaged or no turn judge, its version is another, or this installation
                hashes text differently from the one that wrote it.
        """
        stored = ARCHIVE.read(path)
        if not len(stored.parts["weights"]):
            raise ARCHIVE.damaged(path, "it holds no network")
        judge = cls(**stored.parts if threshold is None else {**stored.parts, "threshold": threshold}, path=path)
        ARCHIVE.check_probe(path, stored, judge._probe())
        return judge

    def _name(self, path: str | Path | None) -> None:
        self.file = None if path is None else Path(path)
        self.spec = f"turns:{path or '(unsaved)'}"

    @torch.inference_mode()
    def _probabilities(self, replies: list[str], contexts: list[list[str]], speakers: list[Speaker]) -> list[float]:
        talks = [_talk(*parts) for parts in zip(contexts, replies, speakers, strict=True)]
        means: list[NDArray[np.float64]] = []
        for start in range(0, len(talks), SCORED_AT_ONCE):
            some = talks[start : start + SCORED_AT_ONCE]
            inputs = _Read(some, self.idf).batch(range(len(some)))
            last = torch.tensor([len(talk.texts) - 1 for talk in some])[:, None]
            logits = [network(*inputs).gather(1, last)[:, 0].double().numpy() for network in self.networks]
            means.append(np.mean(logits, axis=0))
        probabilities: list[float] = sigmoid(np.concatenate(means)).tolist()
        return probabilities

    def _probe(self) -> float:
        # Words, letters, earlier turns and the speaker all take part, so a change in any of them moves the score.
        context = ["What do you say of my hat?", "Isn't it a fine day for all of us!"]
        return self._probabilities(["I don't think so, you know?"], [context], ["bot"])[0]


class TurnFit(NamedTuple):
    """A judge and what it would have said of its own training examples had it not seen them.

    Attributes:
        judge: trained on all examples.
        p_unsafe_out_of_fold: for each example, the score of a judge trained without the example's fold.
    """

    judge: TurnJudge
    p_unsafe_out_of_fold: list[float]


def train_turns(
    examples: Sequence[Example],
    *,
    seed: int,
    networks: int = 1,
    threshold: float | None = None,
    context: bool = True,
) -> TurnJudge:
    """Train a judge.

    Args:
        examples: labelled turns of both labels, and ordinary talk where everyday replies will be judged too. Turns of
            one conversation are read once, where the context of one is the beginning of another's.
        seed: of the first network and of the folds; the others have the seeds after it.
        networks: whose mean logit is the judge's, at least 1.
        threshold: None = where Youden's J is largest on the scores of a 5-fold cross-validation, which takes six times
            as long; otherwise this one, strictly between 0 and 1.
        context: False = a judge that does not read the turns before.

    Returns:
        The judge, not yet saved.

    Raises:
        SafetyError: a label is missing, there are fewer conversations than folds, the scores tell nothing apart, or a
            setting is out of range.
    """
    if threshold is None:
        return cross_fit_turns(examples, seed=seed, networks=networks, context=context).judge
    check_threshold(threshold)
    idf, weights = _fit(examples, seed, networks, context)
    facts = {
        "seed": seed,
        "networks": networks,
        "context": context,
        "examples": len(examples),
        "unsafe": sum(example.unsafe for example in examples),
        "sources": sorted({example.source for example in examples}),
        MARKS: conversation_marks(examples),
    }
    return TurnJudge(idf, weights, threshold, facts)


def cross_fit_turns(
    examples: Sequence[Example],
    *,
    seed: int,
    networks: int = 1,
    context: bool = True,
    threshold_at_false_positive_rate: float | None = None,
) -> TurnFit:
    """Train as `train_turns` does, with the threshold from a cross-validation by conversation, and keep its scores.

    Args:
        examples: as in `train_turns`.
        seed: as in `train_turns`.
        networks: as in `train_turns`.
        context: as in `train_turns`.
        threshold_at_false_positive_rate: None = the threshold is where Youden's J is largest on the out-of-fold
            scores; otherwise the lowest that flags at most this share of the ordinary examples.

    Raises:
        SafetyError: as in `train_turns`.
    """
    fold_of = folds(examples, FOLDS, seed)
    scores = [0.0] * len(examples)
    for fold in range(FOLDS):
        inside = [example for example, own in zip(examples, fold_of, strict=True) if own != fold]
        outside = [index for index, own in enumerate(fold_of) if own == fold]
        judge = TurnJudge(*_fit(inside, seed, networks, context), 0.5, {})
        parts = zip(*((examples[i].reply, examples[i].context, examples[i].speaker) for i in outside), strict=True)
        for index, score in zip(outside, judge._probabilities(*(list(part) for part in parts)), strict=True):
            scores[index] = score
    if threshold_at_false_positive_rate is None:
        threshold = youden_threshold(scores, [example.unsafe for example in examples])
    else:
        ordinary = [p for p, example in zip(scores, examples, strict=True) if is_ordinary(example)]
        threshold = highest_ordinary_threshold(ordinary, threshold_at_false_positive_rate)
    whole = train_turns(examples, seed=seed, networks=networks, context=context, threshold=threshold)
    whole.facts["threshold_at_false_positive_rate"] = threshold_at_false_positive_rate
    return TurnFit(whole, scores)


def load_spec(argument: str | None, threshold: float | None, datapath: str | None) -> TurnJudge:
    """Load `turns:FILE`; see `parlai_safety.judges.spec`. The datapath is not used."""
    return TurnJudge.load(argument or "", threshold=threshold)


class _Talk(NamedTuple):
    """The turns up to a reply, and who says each: 0 = human, 1 = bot."""

    texts: list[str]
    speakers: list[int]

    def key(self, length: int) -> tuple[int | str, ...]:
        """What tells the first turns from those of other talks."""
        return (self.speakers[length - 1], *self.texts[:length])


class _Read:
    """Talks as the network reads them."""

    def __init__(self, talks: Sequence[_Talk], idf: NDArray[Any]) -> None:
        from scipy import sparse

        self.talks = talks
        texts = [text for talk in talks for text in talk.texts]
        blocks = [unit_rows(block, own) for block, own in zip(_counts(texts), idf, strict=True)]
        self.rows = sparse.hstack(blocks).tocsr().astype(np.float32)
        self.first = np.cumsum([0, *(len(talk.texts) for talk in talks)])

    def batch(self, chosen: Sequence[int]) -> tuple[Any, Tensor, Tensor]:
        """The inputs of the network for the chosen talks."""
        at = torch.full((len(chosen), max(len(self.talks[index].texts) for index in chosen)), -1)
        rows: list[int] = []
        for row, index in enumerate(chosen):
            turns = range(self.first[index], self.first[index + 1])
            at[row, : len(turns)] = torch.arange(len(rows), len(rows) + len(turns))
            rows += turns
        return self.rows[rows], torch.tensor([who for index in chosen for who in self.talks[index].speakers]), at


def _talk(context: Sequence[str], reply: str, speaker: Speaker) -> _Talk:
    texts, last = [*context, reply], int(speaker == "bot")
    return _Talk(texts, [(last + len(texts) - 1 - index) % 2 for index in range(len(texts))])


def _counts(texts: Sequence[str]) -> list[Any]:
    words = hashed_counts(texts, columns=COLUMNS, ngram_range=(1, 2), token_pattern=TOKEN)
    return [words, hashed_counts(texts, columns=COLUMNS, ngram_range=(2, 5), analyzer="char_wb")]


def _network(weights: NDArray[np.float32]) -> TurnNetwork:
    # A judge that is loaded in the middle of a run must not change what that run draws.
    with torch.random.fork_rng(devices=[]):
        network = TurnNetwork()
    nn.utils.vector_to_parameters(torch.from_numpy(weights), network.parameters())
    return network.eval()


def _fit(
    examples: Sequence[Example], seed: int, networks: int, context: bool
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """The inverse document frequencies of the labelled talks, and the networks' parameters."""
    labelled = [example for example in examples if not is_ordinary(example)]
    unsafe = sum(example.unsafe for example in labelled)
    if not 0 < unsafe < len(labelled):
        raise SafetyError(
            f"A turn judge was to be trained on {unsafe} unsafe and {len(labelled) - unsafe} safe labelled turns",
            "It learns what tells the two apart, in every fold too, and ordinary talk counts little",
            "Give labelled examples of both labels, from several conversations each",
        )
    if networks < 1:
        raise SafetyError(
            f"A turn judge of {networks} networks was asked for",
            "Its score is the mean of theirs",
            "Choose 1, or 3 for scores that depend less on the seed",
        )
    whole = [_talk(example.context, example.reply, example.speaker) for example in labelled]
    label = {talk.key(len(talk.texts)): float(example.unsafe) for talk, example in zip(whole, labelled, strict=True)}
    begun = {talk.key(length) for talk in whole for length in range(1, len(talk.texts))}
    talks = [talk for talk in whole if talk.key(len(talk.texts)) not in begun]
    texts = [text for talk in talks for text in talk.texts]
    found = [np.bincount(block.indices, minlength=COLUMNS) for block in _counts(texts)]
    idf = np.log((1 + len(texts)) / (1 + np.stack(found))) + 1
    labels = [[label.get(talk.key(length + 1), -1.0) for length in range(len(talk.texts))] for talk in talks]
    ordinary = [example for example in examples if is_ordinary(example)]
    everyday = [
        _talk(example.context[1 - ORDINARY_TURNS :], example.reply, example.speaker)
        for example in ordinary[:: max(1, -(-len(ordinary) // ORDINARY_MOST))]
    ]
    read, calm = _Read(talks, idf), _Read(everyday, idf) if everyday else None
    return idf, np.stack([_trained(read, labels, calm, seed + number, context) for number in range(networks)])


def _trained(
    read: _Read, labels: list[list[float]], calm: _Read | None, seed: int, context: bool
) -> NDArray[np.float32]:
    """Train one network; `labels` are 1 = unsafe, 0 = safe and -1 = not labelled for each turn, `calm` is all safe."""
    order = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TurnNetwork(context)
        columns = [*network.deep.parameters(), *network.wide.parameters()]
        layers = [*network.turn.parameters(), *network.before.parameters(), *network.out.parameters()]
        groups = [{"params": layers, "weight_decay": 0.01}, {"params": columns, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=RATE)
        steps = EPOCHS * -(-len(labels) // BATCH)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        for _ in range(EPOCHS):
            shuffled = order.permutation(len(labels)).tolist()
            for start in range(0, len(labels), BATCH):
                chosen = shuffled[start : start + BATCH]
                rows, speakers, at = read.batch(chosen)
                target = torch.tensor([value for index in chosen for value in labels[index]])
                logits, known = network(rows, speakers, at)[at >= 0], target >= 0
                loss = F.binary_cross_entropy_with_logits(logits[known], target[known])
                if calm is not None:
                    rows, speakers, at = calm.batch(order.integers(len(calm.talks), size=ORDINARY_BATCH).tolist())
                    loss = loss + ORDINARY_WEIGHT * F.softplus(network(rows, speakers, at)[at >= 0]).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                decay.step()
    if not context:
        # With these weights at 0 the network reads no context, and its file need not say so.
        network.out.weight.data[:, HIDDEN : 2 * HIDDEN] = 0.0
    vector: NDArray[np.float32] = nn.utils.parameters_to_vector(network.parameters()).detach().numpy()
    return vector
