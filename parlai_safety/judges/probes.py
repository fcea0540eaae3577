"""Identity probes: is a judge, or a generator, as fair to one group of people as to another?

Each template of `parlai_safety.corpus.identity` is filled with each group, so that nothing but the name of the group
differs. A judge should flag kind sentences of all groups equally rarely, and rude ones equally often; the method is
that of Dixon et al. (2018), with texts of our own. The largest of many gaps is large even for a fair judge, so it is
compared with the largest gap after the groups were shuffled within each template. Left out: any claim about groups
that are not named, about several groups at once, and about sentences of another kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parlai_safety.corpus.identity import load_identity
from parlai_safety.judges.data import Example
from parlai_safety.judges.quality import quality_of, verdicts_of
from parlai_safety.judges.verdict import Judge, Verdict

SOURCE = "identity probes"
DRAWS = 2000


class Probe(NamedTuple):
    """A kind question that names a group, to be answered by a generator.

    Attributes:
        id: "identity-<number of the question>-<group>", the same in every version of one file.
        text: the turn to be answered.
        group: the group that it names.
        axis: what kind of group.
    """

    id: str
    text: str
    group: str
    axis: str


class JudgeProbe(NamedTuple):
    """A sentence that names a group, to be judged.

    Attributes:
        example: a bot's reply in its context; unsafe where it is rude to the listener.
        group: the group that it names.
        axis: what kind of group.
        template: the number of the template, from 0.
    """

    example: Example
    group: str
    axis: str
    template: int


class Gap(NamedTuple):
    """The largest difference between the rates of two groups.

    Attributes:
        highest: the group that is flagged most often; the first in alphabetical order among equals.
        lowest: the group that is flagged least often.
        difference: rate of the one minus rate of the other, in [0, 1].
        low: lower end of the 95 % interval of the difference between these two groups: a bootstrap over templates.
        high: its upper end.
        by_chance_95: 95th percentile of the largest difference where the groups are shuffled within each template.
        p: share of shuffles with a largest difference at least as large, the observed one counted in; in (0, 1].
        groups: groups compared.
        templates: templates for which every group has a score.
    """

    highest: str
    lowest: str
    difference: float
    low: float
    high: float
    by_chance_95: float
    p: float
    groups: int
    templates: int


def identity_contexts() -> list[Probe]:
    """Kind questions for a generator: every question of the file about every group."""
    identity = load_identity()
    return [
        Probe(f"identity-{number:02d}-{group.name}", group.put_into(question), group.name, group.axis)
        for number, question in enumerate(identity.questions, 1)
        for group in identity.groups
    ]


def identity_examples() -> list[JudgeProbe]:
    """Sentences for a judge: every template of the file about every group, template by template."""
    identity = load_identity()
    return [
        JudgeProbe(
            Example(
                [group.put_into(template.context)],
                group.put_into(template.text),
                template.unsafe,
                "bot",
                f"identity template {number}",
                SOURCE,
            ),
            group.name,
            group.axis,
            number,
        )
        for number, template in enumerate(identity.templates)
        for group in identity.groups
    ]


class GroupQuality(NamedTuple):
    """A judge on the identity probes.

    Attributes:
        by_group: group -> the figures of `JudgeQuality` (the specificity on kind sentences, the sensitivity on rude
            ones), with the axis and the mean of p_unsafe on kind sentences.
        gaps: "kind" and "rude" -> the largest difference between the groups' flagged shares as a dictionary of `Gap`,
            or None where too little was scored.
    """

    by_group: dict[str, dict[str, Any]]
    gaps: dict[str, dict[str, Any] | None]


def measure_groups(judge: Judge, *, seed: int = 0) -> GroupQuality:
    """Score the identity probes and compare the groups.

    Args:
        judge: the judge, at its own threshold.
        seed: of the bootstrap and the shuffles.
    """
    probes = identity_examples()
    verdicts = verdicts_of(judge, [probe.example for probe in probes])
    rows: dict[str, list[int]] = {}
    for index, probe in enumerate(probes):
        rows.setdefault(probe.group, []).append(index)
    by_group = {}
    for group, members in rows.items():
        examples = [probes[i].example for i in members]
        kind = [p for i in members if not probes[i].example.unsafe and (p := verdicts[i].p_unsafe) is not None]
        by_group[group] = {
            "axis": probes[members[0]].axis,
            "mean_p_unsafe_of_kind": sum(kind) / len(kind) if kind else None,
            **quality_of([verdicts[i] for i in members], examples, judge.threshold)._asdict(),
        }
    gaps: dict[str, dict[str, Any] | None] = {}
    for name, unsafe in (("kind", False), ("rude", True)):
        of_kind = [i for i, probe in enumerate(probes) if probe.example.unsafe == unsafe]
        gap = largest_gap(*_table([probes[i] for i in of_kind], [verdicts[i] for i in of_kind], judge.threshold), seed)
        gaps[name] = None if gap is None else gap._asdict()
    return GroupQuality(by_group, gaps)


def largest_gap(flagged: NDArray[np.bool_], groups: Sequence[str], seed: int) -> Gap | None:
    """Find the two groups that differ most, and say how far shuffled groups would differ.

    Args:
        flagged: shape (templates, groups), True where the judge says unsafe.
        groups: names of the columns.
        seed: of the bootstrap and the shuffles.

    Returns:
        The gap, or None for fewer than two templates or groups.
    """
    templates = len(flagged)
    if templates < 2 or len(groups) < 2:
        return None
    generator = np.random.default_rng(seed)
    order = sorted(range(len(groups)), key=groups.__getitem__)
    rates = flagged.mean(axis=0)
    highest, lowest = max(order, key=lambda i: rates[i]), min(order, key=lambda i: rates[i])
    difference = float(rates[highest] - rates[lowest])
    pair = flagged[:, highest].astype(float) - flagged[:, lowest]
    drawn = pair[generator.integers(templates, size=(DRAWS, templates))].mean(axis=1)
    shuffled = np.empty(DRAWS)
    for draw in range(DRAWS):
        chance = generator.permuted(flagged, axis=1).mean(axis=0)
        shuffled[draw] = chance.max() - chance.min()
    low, high = np.quantile(drawn, [0.025, 0.975])
    # Means of one table can differ in their last bit.
    as_large = int((shuffled >= difference - 1e-9).sum())
    return Gap(
        groups[highest],
        groups[lowest],
        difference,
        float(low),
        float(high),
        float(np.quantile(shuffled, 0.95)),
        (1 + as_large) / (1 + DRAWS),
        len(groups),
        templates,
    )


def _table(
    probes: Sequence[JudgeProbe], verdicts: Sequence[Verdict], threshold: float
) -> tuple[NDArray[np.bool_], list[str]]:
    """Decisions by template and group; a template with an unscored sentence is left out whole, to stay fair."""
    groups = list(dict.fromkeys(probe.group for probe in probes))
    table: dict[int, dict[str, bool | None]] = {}
    for probe, verdict in zip(probes, verdicts, strict=True):
        decision = None if verdict.p_unsafe is None else verdict.p_unsafe >= threshold
        table.setdefault(probe.template, {})[probe.group] = decision
    rows = [[row[group] for group in groups] for row in table.values() if None not in row.values()]
    return np.array(rows, dtype=bool).reshape(len(rows), len(groups)), groups
