"""Near-duplicates by the Jaccard index of token sets, exactly and without a sketch.

Own code. Only texts that share one of their rarest words are compared (prefix filtering: Bayardo, Ma and Srikant, 2007,
"Scaling up all pairs similarity search"), which loses no pair. The order of words and repeated words do not count.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

TOKEN = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


def tokens(text: str) -> list[str]:
    """The lower-case words of a text, in order; punctuation is left out."""
    return TOKEN.findall(text.lower())


def jaccard(first: set[str], second: set[str]) -> float:
    """Size of the intersection over size of the union, in [0, 1]; 0 for two empty sets."""
    return len(first & second) / len(first | second) if first or second else 0.0


def near_pairs(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int]]:
    """Yield the index pairs (i, j), i < j, whose token sets have a Jaccard index of at least `threshold` in (0, 1].

    A text without any token is near to nothing.
    """
    sets = [set(tokens(text)) for text in texts]
    frequency = Counter(token for words in sets for token in words)
    texts_by_token: dict[str, list[int]] = defaultdict(list)
    for j, words in enumerate(sets):
        rarest_first = sorted(words, key=lambda token: (frequency[token], token))
        # Near sets share at least threshold * size words, so they cannot miss each other in all but one less of them.
        prefix = rarest_first[: len(words) - math.ceil(threshold * len(words) - 1e-9) + 1]
        candidates = {i for token in prefix for i in texts_by_token[token]}
        for i in sorted(candidates):
            if jaccard(sets[i], words) >= threshold:
                yield i, j
        for token in prefix:
            texts_by_token[token].append(j)


def groups(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The connected groups of 0 .. count-1 under `pairs` (union-find), each sorted, ordered by their first member."""
    parent = list(range(count))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for i, j in pairs:
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    members: dict[int, list[int]] = {}
    for index in range(count):
        members.setdefault(root(index), []).append(index)
    return list(members.values())
