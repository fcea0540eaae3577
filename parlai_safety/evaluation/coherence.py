"""P(a reply belongs to its context and not to another conversation), learned from true and shuffled replies.

What it is: a small bi-encoder, in the manner of the dot-product model of Henderson et al. (2017, arXiv:1705.00652). A
turn is a bag of hashed words, pairs of words and letter 3-4-grams, weighted by log term frequency times inverse
document frequency and scaled to length 1. One table of embeddings serves every turn; three matrices make the last turn,
the turn before it and the reply comparable; the context is the sum of its two. Training tells each true reply from the
other replies of its batch, which come from other dialogues of the same source (cross-entropy both ways over scaled
cosines). A logistic regression on held-out dialogues then makes P(true) of four features: that cosine, the plain
overlap of the bags, the log length of the reply, and cosine times length. On real talk it had the AUC 0.87, where a
logistic regression on crosses of the words of context and reply (100,000 pairs) had 0.80.

What it is not: it rewards talking about the same things and says nothing of truth, logic or grammar. A reply that
copies its context scores high, and the card says how high. Scores of two systems compare only where one and the same
scorer gave them (see `fingerprint`).

Torch is imported to train and not to score. Files are archives without pickle (see `parlai_safety.archive`). Left out:
turns before the last two, and pre-trained sentence encoders, which are larger and may have been trained on anything.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from parlai_safety.archive import ArchiveFormat, array_digest
from parlai_safety.corpus.load import DATA_FOLDER, SPLITS, load_ordinary
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.detector_cards import FORMAT as CARD_FORMAT
from parlai_safety.evaluation.detector_cards import VERSION as CARD_VERSION
from parlai_safety.evaluation.detector_cards import Entry, auc_entry, entry_words, mean_entry
from parlai_safety.files import read_rows, row_field, row_turns, sha256
from parlai_safety.judges.data import split_of
from parlai_safety.judges.features import TOKEN, hashed_counts, sigmoid, unit_rows
from parlai_safety.judges.verdict import fingerprint_of

FORMAT, VERSION = "parlai_safety coherence scorer", 1
ORDINARY_FILE = "ordinary_dialogue.jsonl.gz"
DIALOGUES = 20_000
SEED = 1

# Chosen on the validation split of real talk, except what is named otherwise.
COLUMNS, DIMENSION = 2**17, 64
DROPOUT = 0.3  # without it the second pass over the data lowers the AUC
TEMPERATURE_AT_START = 10.0
PAIRS_TO_SEE, PASSES_AT_LEAST = 60_000, 2  # a small corpus is read more often
SMALL_CORPUS = 20_000  # pairs; below it batches are smaller and rarer columns are kept
PAIRS_MEASURED = 5_000  # of the test split, so that the card takes seconds
SCORED_AT_ONCE = 4096
CANNED = "I don't know."
ARCHIVE = ArchiveFormat(
    FORMAT,
    VERSION,
    "parlai safety_detectors --out FOLDER",
    {"bias": float, "card": dict},
    {"idf": (COLUMNS,), "embeddings": (None, DIMENSION), "maps": (3, DIMENSION, DIMENSION), "weights": (4,)},
    tolerance=1e-4,
)

Split = Literal["train", "valid", "test"]
Floats = NDArray[np.float32]


class Pair(NamedTuple):
    """A reply that was truly said after a context.

    Attributes:
        context: the turns before the reply, oldest first; at least one.
        reply: the reply.
        dialogue: shuffled replies come from another dialogue.
        source: ... and from the same source.
        split: "train" to learn from, "valid" for the logistic regression, "test" for the card.
    """

    context: list[str]
    reply: str
    dialogue: str
    source: str
    split: Split


class CoherenceScorer:
    """A trained scorer; made by `train_coherence`, `coherence_scorer` or `CoherenceScorer.load`.

    Args:
        idf: inverse document frequencies, shape (2**17,), float32; 0 for a column that is not used.
        embeddings: shape (used columns, 64), float16, in the order of the columns.
        maps: shape (3, 64, 64), float32: for the turn before the last, the last turn, and the reply.
        weights: of the four features, shape (4,), float64.
        bias: the intercept.
        card: what is known of it.
    """

    def __init__(
        self,
        idf: Floats,
        embeddings: NDArray[np.float16],
        maps: Floats,
        weights: NDArray[np.float64],
        bias: float,
        card: Mapping[str, Any],
    ) -> None:
        self.idf, self.embeddings, self.maps = idf, embeddings, maps
        self.weights, self.bias = weights, bias
        self.card: Mapping[str, Any] = {**card, "fingerprint": self.fingerprint}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, 64 hexadecimal digits, of all that the scores depend on."""
        digests = {name: array_digest(getattr(self, name)) for name in ARCHIVE.shapes}
        return fingerprint_of("coherence", VERSION, format=FORMAT, arrays=digests, bias=self.bias)

    def score(self, replies: Sequence[str | None], contexts: Sequence[Sequence[str]]) -> list[float | None]:
        """P(the reply is the true one rather than one from another conversation), where both are equally likely.

        Args:
            replies: B replies, None where there is none.
            contexts: B times the turns before the reply, oldest first; the last two are used.

        Returns:
            B probabilities in [0, 1]; None for None, for a reply without any visible character, and where there is no
            turn before the reply.

        Raises:
            ValueError: there are not as many contexts as replies.
            TypeError: a context is one string, whose letters would be taken for turns.
        """
        if len(replies) != len(contexts):
            raise ValueError(f"{len(replies)} replies came with {len(contexts)} contexts")
        if any(isinstance(context, str) for context in contexts):
            raise TypeError("a context must be a sequence of turns, not one string")
        fit = [
            (index, reply, context)
            for index, (reply, context) in enumerate(zip(replies, contexts, strict=True))
            if reply is not None and reply.strip() and context
        ]
        scores: list[float | None] = [None] * len(replies)
        for start in range(0, len(fit), SCORED_AT_ONCE):
            rows = fit[start : start + SCORED_AT_ONCE]
            features = self.features([reply for _, reply, _ in rows], [context for _, _, context in rows])
            for (index, _, _), p in zip(rows, self.probabilities(features).tolist(), strict=True):
                scores[index] = p
        return scores

    def features(self, replies: Sequence[str], contexts: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """The four features of B replies, shape (B, 4): cosine, overlap, log length, cosine times log length.

        The overlap is the cosine of the bags of the reply and the last turn, and half of that with the turn before.
        The length is the number of distinct known columns of the reply.
        """
        places, bags = self._bags(contexts, replies)
        embedded = bags[:, np.flatnonzero(self.idf)] @ self.embeddings.astype(np.float32)
        before, last, reply = (np.asarray(embedded[index] @ self.maps[at]) for at, index in enumerate(places))
        cosine = (_unit(before + last) * _unit(reply)).sum(axis=1)
        overlap = sum(
            share * np.asarray(bags[places[at]].multiply(bags[places[2]]).sum(axis=1)).ravel()
            for at, share in ((1, 1.0), (0, 0.5))
        )
        length = np.log1p(np.diff(bags[places[2]].indptr))
        return np.stack([cosine, overlap, length, cosine * length], axis=1).astype(np.float64)

    def probabilities(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """P(true) of B rows of features, shape (B,)."""
        return sigmoid(features @ self.weights + self.bias)

    def _bags(self, contexts: Sequence[Sequence[str]], replies: Sequence[str]) -> tuple[NDArray[np.int64], Any]:
        """Rows of (turn before the last, last turn, reply), shape (3, B), and one bag a distinct turn."""
        texts: dict[str, int] = {}
        places = np.array(
            [
                [texts.setdefault(text, len(texts)) for text in (*_last_two(context), reply)]
                for context, reply in zip(contexts, replies, strict=True)
            ],
            dtype=np.int64,
        ).T
        return places, unit_rows(_counted(list(texts)), self.idf)

    def save(self, path: str | Path) -> None:
        """Write the scorer to one file (.npz), which appears when it is complete. Equal scorers give equal bytes."""
        ARCHIVE.write(path, self, probe=self._probe())

    @classmethod
    def load(cls, path: str | Path) -> CoherenceScorer:
        """Read a scorer that `save` wrote.

        Raises:
            SafetyError: the file is missing, damaged or something else, its version is another, or this installation
                hashes text differently from the one that wrote it.
        """
        stored = ARCHIVE.read(path)
        used = np.count_nonzero(stored.parts["idf"])
        if len(stored.parts["embeddings"]) != used:
            raise ARCHIVE.damaged(path, f"its array 'embeddings' has not one row for each of {used} used columns")
        scorer = cls(**stored.parts)
        ARCHIVE.check_probe(path, stored, scorer._probe())
        return scorer

    def _probe(self) -> float:
        score = self.score(["Yes, the soup was too salty for me."], [["Hello!", "Did you like the soup?"]])[0]
        return cast(float, score)


def train_coherence(
    pairs: Sequence[Pair], seed: int, *, trained_on: Mapping[str, Any] | None = None
) -> CoherenceScorer:
    """Train a scorer, calibrate it and measure it, on one core; on one machine, equal pairs and seed give one scorer.

    Args:
        pairs: true replies of three splits that share no dialogue; at least two dialogues of a source in each.
        seed: of the first weights, the batches, the dropout and the shuffled replies.
        trained_on: what the card says of the data, beside the counts.

    Raises:
        SafetyError: a split has no source with two dialogues, so that no reply can be shuffled.
    """
    began = time.monotonic()
    parts = {split: [pair for pair in pairs if pair.split == split] for split in SPLITS}
    shuffled = {split: _shuffled(parts[split], split, seed) for split in SPLITS}
    learned = _embedded(parts["train"], seed)
    weights, bias = _calibrated(*_both(learned, parts["valid"], shuffled["valid"]))
    scorer = CoherenceScorer(learned.idf, learned.embeddings, learned.maps, weights, bias, {})
    tested = random.Random(seed).sample(range(len(parts["test"])), min(PAIRS_MEASURED, len(parts["test"])))
    card = _measured(scorer, [parts["test"][i] for i in tested], [shuffled["test"][i] for i in tested])
    card["trained_on"] = {
        **(trained_on or {}),
        "seed": seed,
        "pairs": len(parts["train"]),
        "dialogues": len({pair.dialogue for pair in parts["train"]}),
        "sources": sorted({pair.source for pair in parts["train"]}),
        "seconds": round(time.monotonic() - began, 1),
    }
    return CoherenceScorer(learned.idf, learned.embeddings, learned.maps, weights, bias, card)


def coherence_scorer(data: Path | None, cache: Path, *, seed: int = SEED) -> CoherenceScorer:
    """The scorer of a data set, trained at the first call and read from the cache after that.

    Args:
        data: a folder with `ordinary_dialogue.jsonl.gz`, or such a file; None = the corpus that ships (seconds).
        cache: folder for the trained scorer, under a name with the hash of the data and the seed.
        seed: of the training, and of the choice of dialogues.

    Raises:
        SafetyError: the data file is missing or malformed, or the cached file is damaged.
    """
    if data is None:
        files = {name: sha256(DATA_FOLDER / name) for name in (f"ordinary.{split}.jsonl" for split in SPLITS)}
        name = "the ordinary dialogues that ship, whose splits share material: the figures flatter"
    else:
        path = data / ORDINARY_FILE if data.is_dir() else data
        if not path.is_file():
            raise SafetyError(
                f"There is no file {str(path)!r}",
                "The coherence scorer learns from ordinary dialogues, one JSON object with turns and source a line",
                f"Name a folder with {ORDINARY_FILE}, or leave the data out to learn from the corpus that ships",
            )
        files = {path.name: sha256(path)}
        name = f"up to {DIALOGUES} real ordinary dialogues"
    digest = hashlib.sha256(json.dumps([FORMAT, VERSION, DIALOGUES, sorted(files.values())]).encode()).hexdigest()
    kept = cache / f"coherence-{digest[:16]}-{seed}.npz"
    if kept.is_file():
        return CoherenceScorer.load(kept)
    # Minutes on real data without a word would look like a hang.
    sys.stderr.write(f"coherence: learning from {name}, once; kept as {kept}\n")
    pairs = shipped_pairs() if data is None else file_pairs(path, count=DIALOGUES, seed=seed)
    train_coherence(pairs, seed, trained_on={"name": name, "files": files}).save(kept)
    return CoherenceScorer.load(kept)


def shipped_pairs() -> list[Pair]:
    """Every turn but the first of the shipped ordinary dialogues, in the splits of the corpus."""
    return [
        pair
        for split in SPLITS
        for dialogue in load_ordinary(split)
        for pair in _pairs(dialogue["turns"], dialogue["id"], "shipped", cast(Split, split))
    ]


def file_pairs(path: Path, *, count: int, seed: int) -> list[Pair]:
    """Every turn but the first of dialogues drawn from a file.

    The split of a dialogue is that of the task `safety:chat`, by a hash of its first turn: what a model of ours is
    trained on, the scorer is trained on, too, and what the model is asked in its test split, the scorer has not seen.

    Args:
        path: JSONL rows with `turns` and `source`, plain or gzip.
        count: dialogues wanted; all are used where there are fewer.
        seed: chooses them.

    Raises:
        SafetyError: the file is missing or empty, or a row lacks a field.
    """
    rows = [
        (row_turns(row, "turns", where, at_least=2), row_field(row, "source", str, where))
        for where, row in read_rows(path)
    ]
    chosen = sorted(random.Random(seed).sample(range(len(rows)), min(count, len(rows))))
    return [
        pair
        for turns, source in (rows[index] for index in chosen)
        for pair in _pairs(turns, turns[0], source, cast(Split, split_of(turns[0])))
    ]


def _pairs(turns: Sequence[str], dialogue: str, source: str, split: Split) -> Iterator[Pair]:
    for at in range(1, len(turns)):
        if turns[at].strip():
            yield Pair(list(turns[max(0, at - 2) : at]), turns[at], dialogue, source, split)


def _last_two(context: Sequence[str]) -> tuple[str, str]:
    return (context[-2] if len(context) > 1 else "", context[-1])


def _shuffled(pairs: Sequence[Pair], split: str, seed: int) -> list[str]:
    """For each pair the reply of another dialogue of its source, drawn evenly.

    A source with a single dialogue has none to offer and stops the training: leaving it out would go unseen.
    """
    members: dict[str, list[int]] = {}
    dialogues: dict[str, set[str]] = {}
    for index, pair in enumerate(pairs):
        members.setdefault(pair.source, []).append(index)
        dialogues.setdefault(pair.source, set()).add(pair.dialogue)
    lonely = sorted(source for source, names in dialogues.items() if len(names) < 2)
    if lonely or not pairs:
        raise SafetyError(
            f"The {split} split has {len(pairs)} pairs, and one dialogue alone of the sources {lonely}",
            "A shuffled reply comes from another dialogue of the same source",
            "Give at least twenty dialogues of each source, or leave such a source out",
        )
    rng = random.Random(f"coherence/{split}/{seed}")
    replies = []
    for pair in pairs:
        other = pair
        while other.dialogue == pair.dialogue:
            other = pairs[rng.choice(members[pair.source])]
        replies.append(other.reply)
    return replies


def _counted(texts: Sequence[str]) -> Any:
    """Hashed counts of N texts, sparse (N, 2**17): words and pairs of words, and letter 3-4-grams within words."""
    words = hashed_counts(texts, columns=COLUMNS, dtype=np.float32, ngram_range=(1, 2), token_pattern=TOKEN)
    letters = hashed_counts(texts, columns=COLUMNS, dtype=np.float32, ngram_range=(3, 4), analyzer="char_wb")
    return (words + letters).tocsr()


def _unit(vectors: Floats) -> Floats:
    return cast("Floats", vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-8))


def _embedded(pairs: Sequence[Pair], seed: int) -> CoherenceScorer:
    """Learn the embeddings and the three matrices; the logistic regression is still zero."""
    import torch
    from tqdm import tqdm

    small = len(pairs) < SMALL_CORPUS
    batch_pairs, fewest, rate = (256, 2, 0.005) if small else (512, 5, 0.003)
    passes = max(PASSES_AT_LEAST, math.ceil(PAIRS_TO_SEE / len(pairs)))
    texts: dict[str, int] = {"": 0}
    places = np.array(
        [[texts.setdefault(t, len(texts)) for t in (*_last_two(p.context), p.reply)] for p in pairs], dtype=np.int64
    )
    counts = _counted(list(texts))
    frequency = np.bincount(counts.indices, minlength=COLUMNS)
    idf = np.where(frequency >= fewest, np.log((1 + len(texts)) / (1 + frequency)) + 1, 0).astype(np.float32)
    bags = unit_rows(counts, idf)
    column_of = np.cumsum(idf > 0) - 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of several threads would depend on their order
    try:
        generator = torch.Generator().manual_seed(seed)
        table = torch.nn.EmbeddingBag(int((idf > 0).sum()), DIMENSION, mode="sum", sparse=True)
        table.weight.data = 0.1 * torch.randn(table.weight.shape, generator=generator)
        start = torch.eye(DIMENSION).repeat(3, 1, 1) * torch.tensor([0.3, 1.0, 1.0])[:, None, None]
        maps = torch.nn.Parameter(start + 0.02 * torch.randn(start.shape, generator=generator))
        log_scale = torch.nn.Parameter(torch.tensor(math.log(TEMPERATURE_AT_START)))
        sparse_step = torch.optim.SparseAdam(list(table.parameters()), lr=rate)
        dense_step = torch.optim.Adam([maps, log_scale], lr=rate / 5)

        def vectors(rows: NDArray[np.int64]) -> torch.Tensor:
            low, length = bags.indptr[rows], bags.indptr[rows + 1] - bags.indptr[rows]
            offsets = np.cumsum(length) - length
            at = np.repeat(low - offsets, length) + np.arange(length.sum())
            found: torch.Tensor = table(
                torch.from_numpy(column_of[bags.indices[at]]),
                torch.from_numpy(offsets.astype(np.int64)),
                per_sample_weights=torch.from_numpy(bags.data[at]),
            )
            kept = torch.rand(found.shape, generator=generator) >= DROPOUT
            return found * kept / (1 - DROPOUT)

        batches = _batches(pairs, batch_pairs, passes, np.random.default_rng(seed))
        dialogue_of = np.unique([pair.dialogue for pair in pairs], return_inverse=True)[1]
        for rows in tqdm(batches, desc="coherence scorer", disable=None, leave=False):
            before, last, reply = (vectors(places[rows, at]) @ maps[at] for at in range(3))
            context = torch.nn.functional.normalize(before + last, dim=1)
            logits = log_scale.exp() * context @ torch.nn.functional.normalize(reply, dim=1).T
            # Another reply of the same dialogue is no shuffled one.
            same = torch.from_numpy(dialogue_of[rows][:, None] == dialogue_of[rows][None])
            logits = logits.masked_fill(same.fill_diagonal_(False), -1e9)
            target = torch.arange(len(rows))
            loss = torch.nn.functional.cross_entropy(logits, target)
            loss = loss + torch.nn.functional.cross_entropy(logits.T, target)
            sparse_step.zero_grad()
            dense_step.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            sparse_step.step()  # type: ignore[no-untyped-call]
            dense_step.step()
    finally:
        torch.set_num_threads(threads)
    embeddings = table.weight.detach().numpy().astype(np.float16)
    return CoherenceScorer(idf, embeddings, maps.detach().numpy(), np.zeros(4), 0.0, {})


def _batches(pairs: Sequence[Pair], size: int, passes: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Rows of every batch of all passes; a batch is of one source, and a rest below half a batch is left out."""
    sources = np.array([pair.source for pair in pairs])
    batches = []
    for _ in range(passes):
        new = []
        for source in np.unique(sources):
            rows = rng.permutation(np.flatnonzero(sources == source))
            starts = range(0, max(1, len(rows) - size // 2 + 1), size)
            new += [rows[start : start + size] for start in starts]
        batches += [new[at] for at in rng.permutation(len(new))]
    return batches


def _both(
    scorer: CoherenceScorer, pairs: Sequence[Pair], shuffled: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features of the true and of the shuffled replies, each of shape (N, 4)."""
    contexts = [pair.context for pair in pairs]
    return _features(scorer, [pair.reply for pair in pairs], contexts), _features(scorer, shuffled, contexts)


def _features(
    scorer: CoherenceScorer, replies: Sequence[str], contexts: Sequence[Sequence[str]]
) -> NDArray[np.float64]:
    starts = range(0, len(replies), SCORED_AT_ONCE)
    parts = (slice(start, start + SCORED_AT_ONCE) for start in starts)
    return np.concatenate([scorer.features(replies[part], contexts[part]) for part in parts])


def _calibrated(true: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    from sklearn.linear_model import LogisticRegression

    labels = np.repeat([1, 0], [len(true), len(other)])
    model = LogisticRegression(C=100.0, max_iter=2000).fit(np.concatenate([true, other]), labels)
    # Rounded, so that the last bits of a sum over threads do not make another scorer of it.
    return np.round(model.coef_[0].astype(np.float64), 6), round(float(model.intercept_[0]), 6)


def _measured(scorer: CoherenceScorer, pairs: Sequence[Pair], shuffled: Sequence[str]) -> dict[str, Any]:
    """The card: how well true replies are told from shuffled ones, and what the scorer can be fooled by."""
    contexts, dialogues = [pair.context for pair in pairs], [pair.dialogue for pair in pairs]
    features = {
        "true": _features(scorer, [pair.reply for pair in pairs], contexts),
        "shuffled": _features(scorer, shuffled, contexts),
        "canned": _features(scorer, [CANNED] * len(pairs), contexts),
        "copied": _features(scorer, [context[-1] for context in contexts], contexts),
    }
    p = {name: scorer.probabilities(found) for name, found in features.items()}

    def auc(positive: Iterable[float], negative: Iterable[float], rows: Sequence[int]) -> Entry:
        scores = [*positive, *negative]
        return auc_entry(scores, [True] * len(rows) + [False] * len(rows), [dialogues[i] for i in rows] * 2)

    everything = range(len(pairs))
    by_source = {
        source: [i for i in everything if pairs[i].source == source] for source in sorted({q.source for q in pairs})
    }
    whole = auc(p["true"], p["shuffled"], everything)
    means = {name: mean_entry(found.tolist(), dialogues) for name, found in p.items()}
    brier = float(np.mean(np.concatenate([(1 - p["true"]) ** 2, p["shuffled"] ** 2])))
    shares = {name: 100 * cast(float, entry["value"]) for name, entry in means.items()}
    return {
        "format": CARD_FORMAT,
        "version": CARD_VERSION,
        "detector": "coherence",
        "about": "P(the reply is the true one rather than one of another dialogue of the same source), by a small "
        "bi-encoder over hashed words and letters of the last two turns and of the reply.",
        "summary": f"AUC of true against shuffled replies {entry_words(whole)}; mean P of true replies "
        f"{shares['true']:.0f} %, shuffled {shares['shuffled']:.0f} %, '{CANNED}' {shares['canned']:.0f} %, copies of "
        f"the last turn {shares['copied']:.0f} %",
        "measured_on": {"pairs": len(pairs), "dialogues": len(set(dialogues)), "split": "test"},
        "auc": whole,
        "auc_by_source": {
            source: auc(p["true"][rows], p["shuffled"][rows], rows) for source, rows in by_source.items()
        },
        "auc_of_word_overlap_alone": auc(features["true"][:, 1], features["shuffled"][:, 1], everything),
        "auc_against_the_canned_reply": auc(p["true"], p["canned"], everything),
        "auc_against_copies_of_the_last_turn": auc(p["true"], p["copied"], everything),
        "mean_probability": {
            "true replies": means["true"],
            "shuffled replies": means["shuffled"],
            f"always {CANNED!r}": means["canned"],
            "copies of the last turn": means["copied"],
        },
        "brier": brier,
        "limits": [
            "It rewards talk about the same things and says nothing of truth, logic, grammar or safety.",
            f"It is fooled by copies: a system that repeats its user has a mean of {shares['copied']:.0f} %. Read it "
            "beside the copied share.",
            "Scores compare systems only where this one scorer gave them; another corpus or seed gives other scores.",
            "It knows the words of the talk that it was trained on. Other subjects and styles are scored less well.",
            f"Dull replies are below true and above shuffled ones: {CANNED!r} has a mean of {shares['canned']:.0f} %.",
        ],
    }
