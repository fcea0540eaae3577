"""Numbers about the corpus: size, variety, balance, and how far single words alone give the label away.

`python -m parlai_safety.corpus.statistics` prints them for the shipped files as Markdown. MATTR is the moving-average
type-token ratio (Covington and McFall, 2010, "Cutting the Gordian knot"). Left out: any number about meaning.
scikit-learn is imported only where the linear judge is trained.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from parlai_safety.corpus.load import SPLITS, load_adversarial, load_contradiction, load_ordinary
from parlai_safety.corpus.near import near_pairs, tokens
from parlai_safety.corpus.records import KINDS, STYLES, AdversarialExchange, ContradictionExchange, OrdinaryDialogue
from parlai_safety.errors import SafetyError

MATTR_WINDOW = 500
NEAR_THRESHOLD = 0.8


class Corpus(NamedTuple):
    """Both halves and the contradiction set, by split name; the names of the parts are those of the files."""

    ordinary: Mapping[str, Sequence[OrdinaryDialogue]]
    adversarial: Mapping[str, Sequence[AdversarialExchange]]
    contradiction: Mapping[str, Sequence[ContradictionExchange]]


@dataclasses.dataclass(frozen=True)
class TextStatistics:
    """What one half holds in one split.

    `exchanges` are bot turns with what precedes them (ordinary) or contexts (elsewhere); `bot_turns` counts the
    ordinary bot turns or the replies. Tokens are lower-case words of all turns. `near_share` in [0, 1] is the share of
    bot turns with another bot turn of the split at a Jaccard index of at least 0.8, repeated turns included.
    `unsafe_share` in [0, 1] is None for the ordinary half, which carries no labels.
    """

    conversations: int
    exchanges: int
    bot_turns: int
    distinct_bot_turns: int
    tokens: int
    types: int
    type_token_ratio: float
    mattr: float
    near_share: float
    unsafe_share: float | None
    turn_counts: dict[str, int]


@dataclasses.dataclass(frozen=True)
class WordJudge:
    """Area under the ROC curve, in [0, 1], of a linear judge that sees single words of the reply and no context.

    `with_ordinary` adds the ordinary test turns as safe to the adversarial test replies; `seen` and `unseen` are the
    adversarial test replies of families that are in the training split and of families that are not. `contradiction` is
    that of a judge trained and tested on the contradiction set, and `contradiction_in_context` that of one which sees
    the words of the reply and of the whole context together.
    """

    adversarial: float
    with_ordinary: float
    seen: float
    unseen: float
    contradiction: float
    contradiction_in_context: float


@dataclasses.dataclass(frozen=True)
class CorpusStatistics:
    """All numbers of a corpus. The counts by style, topic and kind are exchanges over the three splits."""

    ordinary: dict[str, TextStatistics]
    adversarial: dict[str, TextStatistics]
    contradiction: dict[str, TextStatistics]
    styles: dict[str, int]
    kinds: dict[str, int]
    topics: dict[str, int]
    families: int
    unseen_families: int
    test_turns_seen_in_train: float
    word_judge: WordJudge


def load_corpus() -> Corpus:
    """The shipped corpus, all splits of all parts."""
    return Corpus(
        ordinary={split: load_ordinary(split) for split in SPLITS},
        adversarial={split: load_adversarial(split) for split in SPLITS},
        contradiction={split: load_contradiction(split) for split in SPLITS},
    )


def measure(corpus: Corpus) -> CorpusStatistics:
    """All statistics of a corpus; some ten seconds on one core. Ratios are rounded to three digits."""
    exchanges = [row for split in SPLITS for row in corpus.adversarial[split]]
    dialogues = [row for split in SPLITS for row in corpus.ordinary[split]]
    topics: Counter[str] = Counter()
    for dialogue in dialogues:
        topics[dialogue["topic"]] += len(dialogue["turns"]) // 2
    styles = Counter(row["style"] for row in exchanges)
    kinds = Counter(row["kind"] for split in SPLITS for row in corpus.contradiction[split])
    known = {turn for row in corpus.ordinary["train"] for turn in _bot_turns(row)}
    asked = [turn for row in corpus.ordinary["test"] for turn in _bot_turns(row)]
    return CorpusStatistics(
        ordinary={split: _ordinary_statistics(corpus.ordinary[split]) for split in SPLITS},
        adversarial={split: _reply_statistics(corpus.adversarial[split]) for split in SPLITS},
        contradiction={split: _reply_statistics(corpus.contradiction[split]) for split in SPLITS},
        styles={style: styles[style] for style in STYLES},
        kinds={kind: kinds[kind] for kind in KINDS},
        topics=dict(sorted(topics.items())),
        families=len({row["family"] for row in exchanges}),
        unseen_families=len({row["family"] for row in exchanges if row.get("unseen_family")}),
        test_turns_seen_in_train=round(sum(turn in known for turn in asked) / len(asked), 3),
        word_judge=judge_by_words(corpus),
    )


def mattr(words: Sequence[str], window: int = MATTR_WINDOW) -> float:
    """The mean, over all runs of `window` words, of distinct words divided by `window`; in (0, 1].

    A text shorter than the window counts as one run of its own length.

    Raises:
        SafetyError: there are no words.
    """
    if not words:
        raise SafetyError("A text of no words", "A ratio of types to tokens needs a token", "Give at least one word")
    window = min(window, len(words))
    inside = Counter(words[:window])
    total = len(inside)
    for leaving, entering in zip(words, words[window:], strict=False):
        inside[leaving] -= 1
        if not inside[leaving]:
            del inside[leaving]
        inside[entering] += 1
        total += len(inside)
    return total / (window * (len(words) - window + 1))


def near_share(turns: Sequence[str], threshold: float = NEAR_THRESHOLD) -> float:
    """The share, in [0, 1], of turns with another turn whose token set is near; two equal turns are near."""
    sets = [" ".join(sorted(set(tokens(turn)))) for turn in turns]
    counts = Counter(sets)
    distinct = list(counts)
    near = {index for pair in near_pairs(distinct, threshold) for index in pair}
    near |= {index for index, text in enumerate(distinct) if counts[text] > 1}
    return sum(counts[distinct[index]] for index in near) / len(turns)


def judge_by_words(corpus: Corpus) -> WordJudge:
    """Train a logistic regression on single words of replies alone and test it on unseen replies.

    Trained on the adversarial training replies and, as safe, the ordinary training turns. A value near 1 would mean
    that the labels can be read off single words, and that a judge needs no context.
    """

    def labelled(rows: Sequence[AdversarialExchange]) -> tuple[list[str], list[int]]:
        replies = [reply for row in rows for reply in row["replies"]]
        return [reply["text"] for reply in replies], [int(reply["label"] == "unsafe") for reply in replies]

    texts, labels = labelled(corpus.adversarial["train"])
    ordinary = [turn for row in corpus.ordinary["train"] for turn in _bot_turns(row)]
    area = _word_judge(texts + ordinary, labels + [0] * len(ordinary))
    test = corpus.adversarial["test"]
    texts, labels = labelled(test)
    ordinary = [turn for row in corpus.ordinary["test"] for turn in _bot_turns(row)]
    return WordJudge(
        adversarial=area(texts, labels),
        with_ordinary=area(texts + ordinary, labels + [0] * len(ordinary)),
        seen=area(*labelled([row for row in test if not row.get("unseen_family")])),
        unseen=area(*labelled([row for row in test if row.get("unseen_family")])),
        contradiction=contradiction_by_words(corpus, with_context=False),
        contradiction_in_context=contradiction_by_words(corpus, with_context=True),
    )


def contradiction_by_words(corpus: Corpus, *, with_context: bool) -> float:
    """The AUC, in [0, 1], of single words on the test split of the contradiction set, trained on its training split."""

    def labelled(rows: Sequence[ContradictionExchange]) -> tuple[list[str], list[int]]:
        pairs = [(row, reply) for row in rows for reply in row["replies"]]
        texts = [" ".join([*(row["context"] if with_context else []), reply["text"]]) for row, reply in pairs]
        return texts, [int(reply["label"] == "unsafe") for _, reply in pairs]

    return _word_judge(*labelled(corpus.contradiction["train"]))(*labelled(corpus.contradiction["test"]))


def _word_judge(texts: list[str], labels: list[int]) -> Callable[[list[str], list[int]], float]:
    """Fit a logistic regression on single words; the result gives its AUC on further texts."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline

    judge = make_pipeline(CountVectorizer(token_pattern=r"(?u)\b\w+\b"), LogisticRegression(max_iter=2000))
    judge.fit(texts, labels)
    return lambda others, truth: round(float(roc_auc_score(truth, judge.predict_proba(others)[:, 1])), 3)


def as_markdown(statistics: CorpusStatistics) -> str:
    """The statistics as Markdown tables, with a trailing newline."""
    files = [(f"ordinary.{split}", statistics.ordinary[split]) for split in SPLITS]
    files += [(f"adversarial.{split}", statistics.adversarial[split]) for split in SPLITS]
    files += [(f"contradiction.{split}", statistics.contradiction[split]) for split in SPLITS]
    names = [field.name for field in dataclasses.fields(TextStatistics) if field.name != "turn_counts"]
    rows = [[file, *(_cell(getattr(row, name)) for name in names)] for file, row in files]
    turns = [[file, ", ".join(f"{count} x {n} turns" for n, count in row.turn_counts.items())] for file, row in files]
    judge, by_topic = statistics.word_judge, statistics.topics.values()
    areas = [
        ["adversarial.test", _cell(judge.adversarial)],
        ["- families seen in training", _cell(judge.seen)],
        ["- families not seen in training", _cell(judge.unseen)],
        ["adversarial.test and ordinary.test", _cell(judge.with_ordinary)],
        ["contradiction.test", _cell(judge.contradiction)],
        ["contradiction.test, with the words of the context", _cell(judge.contradiction_in_context)],
    ]
    facts = [
        ["topics", str(len(statistics.topics))],
        ["fewest and most exchanges of a topic", f"{min(by_topic)}, {max(by_topic)}"],
        ["adversarial families, of which unseen", f"{statistics.families}, {statistics.unseen_families}"],
        ["ordinary test turns that occur in training word for word", _cell(statistics.test_turns_seen_in_train)],
    ]
    styles = [[style, str(count)] for style, count in statistics.styles.items()]
    kinds = [[kind, str(count)] for kind, count in statistics.kinds.items()]
    return "\n".join(
        [
            _table(["file", *(name.replace("_", " ") for name in names)], rows),
            _table(["file", "length of the conversations"], turns),
            _table(["fact", "value"], facts),
            _table(["style", "exchanges"], styles),
            _table(["kind of contradiction", "exchanges"], kinds),
            _table(["AUC of single words of the reply, no context", "value"], areas),
        ]
    )


def main() -> int:
    """Print the statistics of the shipped corpus."""
    sys.stdout.write(as_markdown(measure(load_corpus())))
    return 0


def _bot_turns(dialogue: OrdinaryDialogue) -> list[str]:
    return dialogue["turns"][1::2]


def _ordinary_statistics(dialogues: Sequence[OrdinaryDialogue]) -> TextStatistics:
    bot_turns = [turn for row in dialogues for turn in _bot_turns(row)]
    return _text_statistics([row["turns"] for row in dialogues], bot_turns, len(bot_turns), [], 0)


def _reply_statistics(exchanges: Sequence[AdversarialExchange] | Sequence[ContradictionExchange]) -> TextStatistics:
    replies = [[reply["text"] for reply in row["replies"]] for row in exchanges]
    unsafe = sum(reply["label"] == "unsafe" for row in exchanges for reply in row["replies"])
    contexts = [row["context"] for row in exchanges]
    return _text_statistics(contexts, [text for texts in replies for text in texts], len(exchanges), replies, unsafe)


def _text_statistics(
    conversations: list[list[str]], bot_turns: list[str], exchanges: int, replies: list[list[str]], unsafe: int
) -> TextStatistics:
    answers = replies or [[]] * len(conversations)
    texts = [turn for row, extra in zip(conversations, answers, strict=True) for turn in [*row, *extra]]
    words = [word for text in texts for word in tokens(text)]
    lengths = Counter(len(row) for row in conversations)
    return TextStatistics(
        conversations=len(conversations),
        exchanges=exchanges,
        bot_turns=len(bot_turns),
        distinct_bot_turns=len(set(bot_turns)),
        tokens=len(words),
        types=len(set(words)),
        type_token_ratio=round(len(set(words)) / len(words), 3),
        mattr=round(mattr(words), 3),
        near_share=round(near_share(bot_turns), 3),
        unsafe_share=round(unsafe / len(bot_turns), 3) if replies else None,
        turn_counts={str(length): lengths[length] for length in sorted(lengths)},
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
