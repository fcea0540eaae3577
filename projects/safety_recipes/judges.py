"""Measure judges on real labelled talk: word list, bags of words, transformers, and a network over whole conversations.

    python judges.py mix FOLDER OUT                       one file of labelled replies and ordinary turns, for training
    python judges.py table FOLDER [NAME=MODEL_FILE ...]   the two tables of judges.md

The turn network is the package's judge `turns:FILE`, see `parlai_safety.judges.turns`.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import logit
from scipy.stats import rankdata
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from parlai_safety.judges.data import LABELS_FILE, Example, folder_examples, folds, is_ordinary, split_of
from parlai_safety.judges.linear import train_linear
from parlai_safety.judges.quality import auc_interval, quality_of, verdicts_of, youden_threshold
from parlai_safety.judges.spec import load_judge
from parlai_safety.judges.turns import train_turns
from parlai_safety.judges.verdict import Judge, scored
from parlai_safety.scripts.common import say

Scores = NDArray[np.float64]
Trainer = Callable[[list[Example], list[Example]], Scores]
SEED, FOLD_SEED, FOLDS, SEEDS = 1, 2, 5, (1, 2, 3)


def network(seed: int, context: bool = True, networks: int = 1) -> Trainer:
    """The turn judge, learning from its training examples of BAD, and of ordinary talk where it is given some."""

    def run(train: list[Example], test: list[Example]) -> Scores:
        # The tables need no threshold of the judge's own, so none is searched for.
        return judge_scores(train_turns(train, seed=seed, networks=networks, threshold=0.5, context=context), test)

    return run


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


def bad_and_ordinary(examples: list[Example]) -> list[Example]:
    """The turns of Bot-Adversarial Dialogue and of ordinary talk."""
    return [e for e in examples if e.source == "bad_valid" or is_ordinary(e)]


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
    mean = np.mean([logit(scores) for scores in seeds.values()], axis=0)
    baselines = list(found)
    found |= {"turn network, seed 1, without context": alone, **seeds, "turn network, mean of 3 seeds": mean}
    found["(mean of the network and the linear judge)"] = mean + logit(found["linear judge"])
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
    mean = network(SEEDS[0], networks=len(SEEDS))
    found: dict[str, Scores] = {"word list": judge_scores(load_judge("wordlist"), both)}
    for name, trainer in {
        "bag of words, two turns of context": bag(2),
        "bag of words, reply alone, trained on BAD's bot turns": on(bag(0), only_bad, only_bots),
        "linear judge": linear,
        "linear judge, trained on BAD": on(linear, only_bad),
        "turn network, mean of 3 seeds, trained on BAD": on(mean, only_bad),
        "turn network, mean of 3 seeds, trained on BAD and ordinary talk": on(mean, bad_and_ordinary),
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
