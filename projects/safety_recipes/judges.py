"""Measure judges on real labelled talk: word list, bags of words, transformers, and a network over whole conversations.

    python judges.py mix FOLDER OUT                       one file of labelled replies and ordinary turns, for training
    python judges.py table FOLDER [NAME=MODEL_FILE ...]   the two tables of judges.md

The turn network reads hashed n-grams of each turn into a vector and a recurrent network over the turns; every labelled
turn of a conversation trains it at once, and it judges the last one. Its parts are old: bags of hashed n-grams (Joulin
et al. 2017, arXiv:1607.01759), a wide linear path beside the deep one (Cheng et al. 2016, arXiv:1606.07792), a GRU.
It was put together here, and is no method of a paper that this project implements.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import rankdata
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from parlai_safety.judges.data import LABELS_FILE, Example, folder_examples, folds, is_ordinary, split_of
from parlai_safety.judges.features import TOKEN, hashed_counts, unit_rows
from parlai_safety.judges.linear import train_linear
from parlai_safety.judges.quality import auc_interval, quality_of, verdicts_of, youden_threshold
from parlai_safety.judges.spec import load_judge
from parlai_safety.judges.verdict import Judge, scored
from parlai_safety.scripts.common import say

Scores = NDArray[np.float64]
Chain = tuple[list[str], list[int]]
Trainer = Callable[[list[Example], list[Example]], Scores]
SEED, FOLD_SEED, FOLDS, SEEDS = 1, 2, 5, (1, 2, 3)
COLUMNS, WIDTH, HIDDEN, EPOCHS, BATCH, RATE = 2**14, 48, 64, 6, 16, 3e-3
ORDINARY_STEP, ORDINARY_BATCH, ORDINARY_WEIGHT = 8, 4, 0.05


class Turns:
    """Hashed n-grams of turns, weighted by the inverse document frequencies of the texts it was made from."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.idf = [
            np.log((1 + len(texts)) / (1 + np.bincount(block.indices, minlength=COLUMNS))) + 1
            for block in self._counts(texts)
        ]

    def rows(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Shape (N, 2 * COLUMNS), float32: words, then characters, each of length 1."""
        blocks = [unit_rows(block, idf) for block, idf in zip(self._counts(texts), self.idf, strict=True)]
        return sparse.hstack(blocks).tocsr().astype(np.float32)

    def _counts(self, texts: Sequence[str]) -> list[sparse.csr_matrix]:
        words = hashed_counts(texts, columns=COLUMNS, ngram_range=(1, 2), token_pattern=TOKEN)
        return [words, hashed_counts(texts, columns=COLUMNS, ngram_range=(2, 5), analyzer="char_wb")]


class TurnNetwork(nn.Module):
    """Logits of being unsafe for each turn of B conversations of at most T turns, from turns up to that one."""

    def __init__(self, context: bool) -> None:
        super().__init__()
        self.context = context
        self.deep = nn.EmbeddingBag(2 * COLUMNS, WIDTH, mode="sum")
        self.wide = nn.EmbeddingBag(2 * COLUMNS, 2, mode="sum")
        nn.init.normal_(self.deep.weight, std=0.02)
        nn.init.zeros_(self.wide.weight)
        self.turn = nn.Linear(WIDTH + 2, HIDDEN)
        self.before = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.out = nn.Linear(2 * HIDDEN + 3, 2)

    def forward(self, rows: sparse.csr_matrix, speaker: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Turns (N, columns), their speakers (N,), and which turn stands where (B, T), -1 for none -> (B, T)."""
        columns, starts = torch.from_numpy(rows.indices).long(), torch.from_numpy(rows.indptr[:-1]).long()
        values = torch.from_numpy(rows.data)
        kept = F.dropout(values, 0.1, self.training)
        who = F.one_hot(speaker, 2).float()
        deep = F.dropout(self.deep(columns, starts, per_sample_weights=kept), 0.5, self.training)
        turn = F.dropout(torch.relu(self.turn(torch.cat([who, deep], 1))), 0.5, self.training)
        place = at.clamp(min=0)
        turns = turn[place] * (at >= 0)[..., None]
        states, _ = self.before(turns)
        before = F.dropout(F.pad(states, (0, 0, 1, 0))[:, :-1], 0.5, self.training) * float(self.context)
        number = (torch.arange(at.shape[1]) / 10).expand(at.shape)[..., None]
        logits = self.out(torch.cat([turns, before, who[place], number], -1))
        logits = logits + 4 * self.wide(columns, starts, per_sample_weights=values)[place]
        return logits.gather(2, speaker[place][..., None])[..., 0]


class Chains:
    """Conversations as the network reads them, each its texts and its speakers (0 = human)."""

    def __init__(self, chains: Sequence[Chain], turns: Turns) -> None:
        self.chains, self.rows = chains, turns.rows([text for texts, _ in chains for text in texts])
        self.first = np.cumsum([0, *(len(texts) for texts, _ in chains)])

    def batch(self, chosen: Sequence[int]) -> tuple[sparse.csr_matrix, torch.Tensor, torch.Tensor]:
        """The inputs of the network for the chosen ones."""
        at = torch.full((len(chosen), max(len(self.chains[index][0]) for index in chosen)), -1)
        rows: list[int] = []
        for row, index in enumerate(chosen):
            turns = range(self.first[index], self.first[index + 1])
            at[row, : len(turns)] = torch.arange(len(rows), len(rows) + len(turns))
            rows += turns
        return self.rows[rows], torch.tensor([who for index in chosen for who in self.chains[index][1]]), at


def chain(example: Example) -> Chain:
    """The turns up to an example and who says them: the two take turns, and the last one is the example's."""
    texts, last = [*example.context, example.reply], int(example.speaker == "bot")
    return texts, [(last + len(texts) - 1 - index) % 2 for index in range(len(texts))]


def train_turns(
    train: list[Example], seed: int, context: bool = True, ordinary: Sequence[Example] = ()
) -> tuple[TurnNetwork, Turns]:
    """Train on every labelled turn of the conversations, each once an epoch, and on ordinary turns, all safe."""
    label = {(*e.context, e.reply): float(e.unsafe) for e in train}
    begun = {(*e.context, e.reply)[:length] for e in train for length in range(1, len(e.context) + 1)}
    chains = [chain(e) for e in train if (*e.context, e.reply) not in begun]
    turns = Turns([text for texts, _ in chains for text in texts])
    read = Chains(chains, turns)
    everyday = Chains([chain(example) for example in ordinary], turns) if ordinary else None
    torch.manual_seed(seed)
    order, model = np.random.default_rng(seed), TurnNetwork(context)
    sparse_part = [*model.deep.parameters(), *model.wide.parameters()]
    dense_part = [*model.turn.parameters(), *model.before.parameters(), *model.out.parameters()]
    groups = [{"params": dense_part, "weight_decay": 0.01}, {"params": sparse_part, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    steps = EPOCHS * -(-len(chains) // BATCH)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(EPOCHS):
        shuffled = order.permutation(len(chains))
        for start in range(0, len(chains), BATCH):
            chosen = shuffled[start : start + BATCH].tolist()
            rows, speaker, at = read.batch(chosen)
            target = torch.full(at.shape, -1.0)
            for row, index in enumerate(chosen):
                texts = chains[index][0]
                for turn in range(len(texts)):
                    target[row, turn] = label.get(tuple(texts[: turn + 1]), -1.0)
            known = target >= 0
            loss = F.binary_cross_entropy_with_logits(model(rows, speaker, at)[known], target[known])
            if everyday is not None:
                drawn = order.integers(len(ordinary), size=ORDINARY_BATCH).tolist()
                rows, speaker, at = everyday.batch(drawn)
                loss = loss + ORDINARY_WEIGHT * F.softplus(model(rows, speaker, at)[at >= 0]).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            decay.step()
    return model.eval(), turns


def turn_scores(model: TurnNetwork, turns: Turns, examples: list[Example]) -> Scores:
    """The logit of each example's last turn."""
    found: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(examples), 64):
            some = examples[start : start + 64]
            logits = model(*Chains([chain(e) for e in some], turns).batch(range(len(some))))
            found += [float(logits[row, len(example.context)]) for row, example in enumerate(some)]
    return np.array(found)


def network(seed: int, context: bool = True, ordinary: bool = False) -> Trainer:
    """The turn network, learning from its training examples of BAD, and of ordinary talk where that is asked for."""

    def run(train: list[Example], test: list[Example]) -> Scores:
        everyday = [e._replace(context=e.context[-8:]) for e in train if is_ordinary(e)][::ORDINARY_STEP]
        return turn_scores(*train_turns(only_bad(train), seed, context, everyday if ordinary else ()), test)

    return run


def mean_network(ordinary: bool) -> Trainer:
    """The mean logit of the networks of all seeds."""
    return lambda train, test: np.mean([network(seed, ordinary=ordinary)(train, test) for seed in SEEDS], axis=0)


def linear(train: list[Example], test: list[Example]) -> Scores:
    """Our linear judge."""
    return judge_scores(train_linear(train, seed=SEED), test)


def bag(turns_before: int) -> Trainer:
    """The bag of words of the data's README: word 1-2-grams, character 2-5-grams, and the speaker."""

    def run(train: list[Example], test: list[Example]) -> Scores:
        def texts(examples: list[Example]) -> list[str]:
            last = slice(-turns_before, None) if turns_before else slice(0)
            return ["\n".join([*e.context[last], e.reply]) for e in examples]

        parts = [
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2),
        ]
        speaker = [sparse.csr_matrix([[float(e.speaker == "human")] for e in rows]) for rows in (train, test)]
        known = sparse.hstack([*(part.fit_transform(texts(train)) for part in parts), speaker[0]]).tocsr()
        model = LogisticRegression(C=4.0, class_weight="balanced", solver="liblinear", random_state=SEED)
        model.fit(known, [e.unsafe for e in train])
        return model.decision_function(sparse.hstack([*(part.transform(texts(test)) for part in parts), speaker[1]]))

    return run


def judge_scores(judge: Judge, examples: list[Example]) -> Scores:
    """p_unsafe of a judge that must score everything."""
    return np.array([verdict.p_unsafe for verdict in verdicts_of(judge, examples)], dtype=float)


def only_bad(examples: list[Example]) -> list[Example]:
    """The turns of Bot-Adversarial Dialogue."""
    return [e for e in examples if e.source == "bad_valid"]


def only_bots(examples: list[Example]) -> list[Example]:
    """The turns that a bot says."""
    return [e for e in examples if e.speaker == "bot"]


def on(trainer: Trainer, *choices: Callable[[list[Example]], list[Example]]) -> Trainer:
    """A trainer that sees a choice of the training examples."""

    def run(train: list[Example], test: list[Example]) -> Scores:
        for choice in choices:
            train = choice(train)
        return trainer(train, test)

    return run


def auc(scores: Scores, unsafe: NDArray[np.bool_]) -> float:
    """Area under the ROC curve; ties count half."""
    order, positive = rankdata(scores), unsafe.sum()
    return float((order[unsafe].sum() - positive * (positive + 1) / 2) / (positive * (~unsafe).sum()))


def difference(first: Scores, second: Scores, examples: list[Example]) -> str:
    """How much larger the first AUC is, with a paired bootstrap interval over conversations."""
    unsafe = np.array([e.unsafe for e in examples])
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.conversation, []).append(index)
    members, generator, draws = list(groups.values()), np.random.default_rng(0), []
    for _ in range(2000):
        rows = np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])
        draws.append(auc(first[rows], unsafe[rows]) - auc(second[rows], unsafe[rows]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{auc(first, unsafe) - auc(second, unsafe):+.3f} [{low:+.3f}, {high:+.3f}]"


def area(scores: Scores, examples: list[Example]) -> str:
    """The AUC with its interval, which draws whole conversations."""
    p_unsafe = probability(scores)
    labels, names = [e.unsafe for e in examples], [e.conversation for e in examples]
    quality, interval = quality_of([scored(p) for p in p_unsafe], examples, 0.5), auc_interval(p_unsafe, labels, names)
    span = "" if interval is None else f" [{interval.low:.3f}, {interval.high:.3f}]"
    return "n/a" if quality.auc is None else f"{quality.auc:.3f}{span}"


def probability(scores: Scores) -> list[float]:
    """Scores in [0, 1] as they are, others as logits."""
    inside = scores.min() >= 0 and scores.max() <= 1
    return (scores if inside else 1 / (1 + np.exp(-scores))).tolist()


def f1(scores: Scores, examples: list[Example], threshold: float) -> float:
    """Of the unsafe class."""
    flagged, unsafe = scores >= threshold, np.array([e.unsafe for e in examples])
    return float(2 * (flagged & unsafe).sum() / max(1, flagged.sum() + unsafe.sum()))


def main(arguments: list[str]) -> None:
    """Do what the module's text says; examples with an empty reply, which no judge scores, are left out."""
    what, folder, *rest = arguments
    everything = [example for example in folder_examples(folder, seed=SEED) if example.reply.strip()]
    if what == "mix":
        mix(everything, Path(rest[0]))
        return
    torch.set_num_threads(1)
    cross_validation(everything)
    test_split(everything, dict(pair.split("=", 1) for pair in rest))


def mix(examples: list[Example], out: Path) -> None:
    """Write all examples as labelled replies, so that `-t safety:labels:classifier` shows ordinary turns as safe."""
    out.mkdir(parents=True, exist_ok=True)
    with gzip.open(out / LABELS_FILE, "wt", encoding="utf-8") as file:
        for e in examples:
            label = "unsafe" if e.unsafe else "safe"
            row = {"context": e.context, "response": e.reply, "label": label, "source": e.source, "speaker": e.speaker}
            file.write(json.dumps(row) + "\n")


def cross_validation(everything: list[Example]) -> None:
    """Judges that learn from BAD, on all turns of BAD, each scored by a judge that did not see its conversation."""
    examples = only_bad(everything)
    fold_of = np.array(folds(examples, FOLDS, FOLD_SEED))
    bot = np.array([e.speaker == "bot" for e in examples])

    def crossed(trainer: Trainer) -> Scores:
        scores = np.zeros(len(examples))
        for fold in range(FOLDS):
            inside = [e for e, own in zip(examples, fold_of, strict=True) if own != fold]
            scores[fold_of == fold] = trainer(
                inside, [e for e, own in zip(examples, fold_of, strict=True) if own == fold]
            )
        return scores

    found = {
        "bag of words, two turns of context (data README)": crossed(bag(2)),
        "bag of words, reply alone": crossed(bag(0)),
        "bag of words, reply alone, trained on bot turns alone": crossed(on(bag(0), only_bots)),
        "linear judge": crossed(linear),
    }
    seeds = {f"turn network, seed {seed}": crossed(network(seed)) for seed in SEEDS}
    alone = crossed(network(SEED, context=False))
    mean = np.mean(list(seeds.values()), axis=0)
    baselines = list(found)
    found |= {"turn network, seed 1, without context": alone, **seeds, "turn network, mean of 3 seeds": mean}
    found["(mean of the network and the linear judge)"] = mean + np.log(
        found["linear judge"] / (1 - found["linear judge"])
    )
    robots = [e for e, own in zip(examples, bot, strict=True) if own]
    say(
        f"{FOLDS}-fold cross-validation over {len({e.conversation for e in examples})} conversations of BAD: "
        f"{len(robots)} bot turns, {sum(e.unsafe for e in robots)} unsafe, judges trained on BAD alone\n"
    )
    heads = ["judge", "AUC, bot turns", "AUC, human turns", *(f"over the {name}" for name in baselines)]
    say("| " + " | ".join(heads) + " |\n|" + ":--|" * len(heads))
    humans = [e for e, own in zip(examples, bot, strict=True) if not own]
    for name, scores in found.items():
        cells = ["" if name in baselines else difference(scores[bot], found[b][bot], robots) for b in baselines]
        say("| " + " | ".join([name, area(scores[bot], robots), area(scores[~bot], humans), *cells]) + " |")


def test_split(everything: list[Example], models: dict[str, str]) -> None:
    """Every judge on the test split; its threshold has the largest J on the valid split, ordinary turns included."""
    parts: dict[str, list[Example]] = {"train": [], "valid": [], "test": []}
    for example in everything:
        parts[split_of(example.conversation)].append(example)
    both = [*parts["valid"], *parts["test"]]
    found: dict[str, Scores] = {"word list": judge_scores(load_judge("wordlist"), both)}
    for name, trainer in {
        "bag of words, two turns of context": bag(2),
        "bag of words, reply alone, trained on BAD's bot turns": on(bag(0), only_bad, only_bots),
        "linear judge": linear,
        "linear judge, trained on BAD": on(linear, only_bad),
        "turn network, mean of 3 seeds, trained on BAD": mean_network(ordinary=False),
        "turn network, mean of 3 seeds, trained on BAD and ordinary talk": mean_network(ordinary=True),
    }.items():
        found[name] = trainer(parts["train"], both)
    for name, file in models.items():
        found[name] = judge_scores(load_judge(f"parlai:{file}"), both)
    groups: dict[str, list[int]] = {"all labelled": []}
    for index, example in enumerate(parts["test"]):
        for group in ["ordinary"] if is_ordinary(example) else [f"{example.source} {example.speaker}", "all labelled"]:
            groups.setdefault(group, []).append(index)
    ordinary = groups.pop("ordinary")
    say(f"\nTest split: {len(parts['test'])} examples; AUC, then F1 of the unsafe class\n")
    heads = [
        f"{name} (n {len(rows)}, {sum(parts['test'][i].unsafe for i in rows)} unsafe)" for name, rows in groups.items()
    ]
    say("| judge | " + " | ".join(heads) + " | ordinary talk flagged |\n|" + ":--|" * (len(heads) + 2))
    for name, scores in found.items():
        valid, test = scores[: len(parts["valid"])], scores[len(parts["valid"]) :]
        threshold = youden_threshold(probability(valid), [e.unsafe for e in parts["valid"]])
        test = np.array(probability(test))
        cells = []
        for rows in groups.values():
            examples = [parts["test"][index] for index in rows]
            cells.append(f"{area(test[rows], examples)}; {f1(test[rows], examples, threshold):.2f}")
        say(f"| {name} | " + " | ".join(cells) + f" | {100 * (test[ordinary] >= threshold).mean():.1f} % |")


if __name__ == "__main__":
    main(sys.argv[1:])
