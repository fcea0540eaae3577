"""One evaluation from beginning to end: ask, judge, measure, write; every step continues where it was cut short.

A run folder belongs to one system under one seed. Each suite has a folder of its own there, with the replies
(`replies.jsonl`) and one file of verdicts a judge; a later call with further suites or judges uses what is there. The
scored speaker is always the system: what a person or a partner said is context and is never counted.
Left out: loading models and judges (the caller does), and pages to look at (`report_runs`).
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.generate import losses, replies
from parlai_safety.evaluation.measures import Further, measures_of
from parlai_safety.evaluation.results import (
    COMPLETE,
    FILE,
    TEXTS,
    Evaluation,
    JudgeEntry,
    Record,
    SuiteResult,
    folder_of,
    write_evaluation,
)
from parlai_safety.evaluation.suites import TURNS, Item, Suite
from parlai_safety.files import write_jsonl
from parlai_safety.judges.card import card_of
from parlai_safety.judges.quality import agreement_of
from parlai_safety.judges.verdict import Judge, Speaker, Verdict, is_unsafe, safe_score, unscored
from parlai_safety.judges.wordlist import WordListJudge, read_terms
from parlai_safety.runs import Journal, Run, alone, hardware, progress, versions
from parlai_safety.statistics import krippendorff_alpha

SCORED_SPEAKER: Final[Speaker] = "bot"
JUDGED_AT_ONCE = 256


class Scorer(Protocol):
    """A measure of replies in context, with a card that says how far to trust it."""

    @property
    def card(self) -> Mapping[str, Any]:
        """How good it is, and on what."""
        ...

    def score(self, replies: Sequence[str | None], contexts: Sequence[Sequence[str]]) -> list[float | None]:
        """One number in [0, 1] a reply, or None where there is none."""
        ...


class Detector(Scorer, Protocol):
    """A scorer with a threshold, from which it says yes."""

    @property
    def threshold(self) -> float:
        """In (0, 1)."""
        ...


@dataclass(frozen=True)
class Plan:
    """What to evaluate, and how.

    Attributes:
        name: of the system, for tables.
        system: what identifies it: model, model file, hash, overridden options.
        suites: what it is asked.
        judges: who judges; the first one decides the headline.
        out: the run folder.
        seed: of everything that is random.
        batch_size: contexts that the system answers at once; it belongs to the settings, as sampling depends on it.
        max_unscored: the largest share of unscored replies of a suite and judge with which the evaluation is complete.
        retry_unscored: ask again for replies that were not given, and judge again what could not be judged.
        command: what the user typed.
        evasive: the detector of evasive replies.
        coherence: the scorer of coherence.
        partner: what identifies the model that plays the adversarial partner, or None for scripts.
        word_list: the list whose words are looked for in the replies.
        topic_judge: the judge that says which replies are on a sensitive topic, or None.
        confidence: coverage of the intervals, in (0, 1).
    """

    name: str
    system: Mapping[str, Any]
    suites: Sequence[Suite]
    judges: Sequence[Judge]
    out: Path
    seed: int
    batch_size: int
    max_unscored: float
    retry_unscored: bool
    command: str
    evasive: Detector
    coherence: Scorer
    partner: Mapping[str, Any] | None = None
    word_list: WordListJudge = field(default_factory=lambda: WordListJudge(read_terms()))
    topic_judge: Judge | None = None
    confidence: float = 0.95
    settings: Mapping[str, Any] = field(default_factory=dict)


class Answer(NamedTuple):
    """What was answered to one question.

    Attributes:
        text: the reply, or None where there is none.
        reason: why there is none.
        guard: what a guard did (see the field `guard` of `parlai_safety.message`); None where the act says nothing.
    """

    text: str | None
    reason: str | None
    guard: Mapping[str, Any] | None = None


class Reply(NamedTuple):
    """A reply of the system, with everything that was said before it."""

    item: Item
    sample: int
    turn: int
    context: tuple[str, ...]
    text: str | None
    reason: str | None
    guard: Mapping[str, Any] | None = None

    @property
    def key(self) -> tuple[str, int, int]:
        """What names it in every file."""
        return (self.item.id, self.sample, self.turn)


def evaluate(plan: Plan, load_system: Callable[[], Any], load_partner: Callable[[], Any] | None = None) -> Evaluation:
    """Evaluate a system, or what is left to be done of it.

    Args:
        plan: what and how.
        load_system: makes the agent; called only if something is left to be asked.
        load_partner: makes the agent that plays the partner in conversations; None for scripts.

    Returns:
        The evaluation, which is also written to `eval.json` in the run folder.

    Raises:
        SafetyError: the folder holds another run, or more than `max_unscored` of the replies of some suite and judge
            could not be scored; in this case everything is written all the same, with the failure as its status.
    """
    if not (plan.suites and plan.judges and plan.batch_size >= 1 and 0 <= plan.max_unscored <= 1):
        raise SafetyError(
            f"An evaluation was asked for with {len(plan.suites)} suites, {len(plan.judges)} judges, batches of "
            f"{plan.batch_size} and at most {plan.max_unscored} unscored",
            "It needs a suite, a judge, batches of at least 1 and a share in [0, 1]",
            "Give for example --suite adversarial --judge linear:judges/grader.npz --batchsize 64 --max-unscored 0.02",
        )
    with alone(plan.out):
        return _evaluate(plan, load_system, load_partner)


def _evaluate(plan: Plan, load_system: Callable[[], Any], load_partner: Callable[[], Any] | None) -> Evaluation:
    settings = {"system": dict(plan.system), "seed": plan.seed, "batch_size": plan.batch_size, "partner": plan.partner}
    Run(plan.out, settings)
    ask = _Asked(plan, load_system, load_partner)
    results: dict[str, SuiteResult] = {}
    agreement: list[dict[str, Any]] = []
    failures: list[str] = []
    for suite in plan.suites:
        folder = plan.out / folder_of(suite.name)
        Run(folder, {"suite": suite.name, "version": suite.version, "sha256": suite.sha256})
        said = ask.replies(suite, folder)
        verdicts = [_verdicts(plan, suite, judge, said, folder) for judge in plan.judges]
        on_topic = None if plan.topic_judge is None else _verdicts(plan, suite, plan.topic_judge, said, folder)
        records = _records(plan, suite, said, verdicts)
        nats = ask.losses(suite, folder)
        result = _result(plan, suite, said, records, nats, on_topic)
        results[suite.name] = result
        agreement += _agreement(plan, suite, verdicts)
        failures += _failures(plan, suite, result)
    evaluation = Evaluation(
        name=plan.name,
        system=plan.system,
        status=" ".join(failures) or COMPLETE,
        seed=plan.seed,
        command=plan.command,
        versions=versions(),
        hardware=hardware(),
        judges=[JudgeEntry(j.spec, j.fingerprint, j.threshold, card_of(j).card) for j in plan.judges],
        agreement=agreement,
        detectors={"evasive": plan.evasive.card, "coherence": plan.coherence.card},
        settings={**plan.settings, "batch_size": plan.batch_size, "partner": plan.partner},
        suites=results,
        confidence=plan.confidence,
    )
    write_evaluation(evaluation, plan.out / FILE)
    if failures:
        raise SafetyError(
            f"The evaluation of {plan.name!r} failed: {evaluation.status}",
            f"More than {100 * plan.max_unscored:g} % without a verdict could hide what a rate should show",
            f"Read the reasons in {plan.out / FILE}, mend the cause and type the command again with --retry-unscored "
            "true (everything that was scored is kept), or allow more with --max-unscored",
        )
    return evaluation


class _Asked:
    """Asks the system, and the partner; both are loaded when the first question is left to be asked."""

    def __init__(
        self, plan: Plan, load_system: Callable[[], Any], load_partner: Callable[[], Any] | None = None
    ) -> None:
        self.plan, self._load_system, self._load_partner = plan, load_system, load_partner
        self._system: Any = None
        self._partner: Any = None

    def replies(self, suite: Suite, folder: Path) -> list[Reply]:
        """All replies of the system to a suite, in the order of the suite; the missing ones are asked for."""
        with Journal(folder / "said.jsonl") as journal:
            if self.plan.retry_unscored:
                kept = [row for row in journal.rows if row[4] is not None]
                if len(kept) < len(journal.rows):
                    journal.rewrite(kept)
            # A row of an agent without a guard has no seventh place.
            known = {tuple(row[:4]): Answer(*row[4:]) for row in journal.rows}
            said = list(self._conversations(suite, journal, known))
        rows = (
            {"id": r.item.id, "sample": r.sample, "turn": r.turn, "context": list(r.context), "reply": r.text}
            for r in said
        )
        write_jsonl(folder / TEXTS, rows)
        return said

    def _conversations(self, suite: Suite, journal: Journal, known: dict[tuple[Any, ...], Answer]) -> Iterator[Reply]:
        turns = TURNS if suite.kind == "conversations" else 1
        live = [(item, sample, item.context) for item in suite.items for sample in range(suite.samples)]
        done: list[Reply] = []
        over: list[Reply] = []
        for turn in range(1, turns + 1):
            # What could not be asked any more has no verdict either, and is counted so.
            done += [last._replace(turn=turn, text=None, reason="the conversation had ended before") for last in over]
            keys = [("system", item.id, sample, turn) for item, sample, _ in live]
            self._ask("system", suite, turn, keys, [context for *_, context in live], journal, known)
            heard = []
            for key, (item, sample, context) in zip(keys, live, strict=True):
                text, reason, guard = known[key]
                done.append(Reply(item, sample, turn, context, text, reason, guard))
                if text is None:
                    over.append(done[-1])
                elif turn < turns:
                    heard.append((item, sample, (*context, text)))
            if turn < turns:
                live = self._answered(suite, turn, heard, journal, known)
                left = {(item.id, sample) for item, sample, _ in live}
                over += [Reply(i, s, turn, c, None, None) for i, s, c in heard if (i.id, s) not in left]
        order = {item.id: position for position, item in enumerate(suite.items)}
        yield from sorted(done, key=lambda r: (order[r.item.id], r.sample, r.turn))

    def _answered(
        self,
        suite: Suite,
        turn: int,
        heard: list[tuple[Item, int, tuple[str, ...]]],
        journal: Journal,
        known: dict[tuple[Any, ...], Answer],
    ) -> list[tuple[Item, int, tuple[str, ...]]]:
        """The conversations with the partner's next turn; those in which it has none are over."""
        if self._load_partner is None:
            return [(i, s, (*c, i.script[turn - 1])) for i, s, c in heard if turn <= len(i.script)]
        keys = [("partner", item.id, sample, turn) for item, sample, _ in heard]
        self._ask("partner", suite, turn, keys, [context for *_, context in heard], journal, known)
        live = []
        for key, (item, sample, context) in zip(keys, heard, strict=True):
            text = known[key].text
            if text is not None:
                live.append((item, sample, (*context, text)))
        return live

    def _ask(
        self,
        who: str,
        suite: Suite,
        turn: int,
        keys: Sequence[tuple[Any, ...]],
        contexts: Sequence[tuple[str, ...]],
        journal: Journal,
        known: dict[tuple[Any, ...], Answer],
    ) -> None:
        before = frozenset(i for i, key in enumerate(keys) if key in known)
        if len(before) == len(keys):
            return
        seed = zlib.crc32(f"{self.plan.seed} {who} {suite.name} {turn}".encode())
        agent = self._agent(who)
        what = f"{suite.name}: replies" if suite.kind != "conversations" else f"{suite.name}: turn {turn}, {who}"
        guards: dict[int, Mapping[str, Any]] = {}

        def heard(at: int, act: Mapping[str, Any]) -> None:
            if isinstance(act.get("guard"), Mapping):
                guards[at] = dict(act["guard"])

        with progress(what, len(keys), len(before)) as advance:
            for i, text, reason in replies(
                agent,
                contexts,
                seed=seed,
                batch_size=self.plan.batch_size,
                known=before,
                progress=advance,
                heard=heard,
            ):
                known[keys[i]] = Answer(text, reason, guards.get(i))
                journal.append([[*keys[i], text, reason, *([guards[i]] if i in guards else [])]])

    def losses(self, suite: Suite, folder: Path) -> dict[str, tuple[float, int]]:
        """Loss and tokens of the first reference of each item, by the item's id; empty where there are none."""
        items = [item for item in suite.items if item.references]
        with Journal(folder / "losses.jsonl") as journal:
            known = {row[0]: (row[1], row[2]) for row in journal.rows}
            before = frozenset(i for i, item in enumerate(items) if item.id in known)
            if len(before) < len(items) and hasattr(self._agent("system"), "compute_loss"):
                with progress(f"{suite.name}: perplexity", len(items), len(before)) as advance:
                    for at, nats, tokens in losses(
                        self._agent("system"),
                        [item.context for item in items],
                        [item.references[0] for item in items],
                        batch_size=self.plan.batch_size,
                        known=before,
                        progress=advance,
                    ):
                        known[items[at].id] = (nats, tokens)
                        journal.append([[items[at].id, nats, tokens]])
        return known

    def _agent(self, who: str) -> Any:
        if who == "partner":
            if self._partner is None:
                assert self._load_partner is not None
                self._partner = self._load_partner()
            return self._partner
        if self._system is None:
            self._system = self._load_system()
        return self._system


def _verdicts(plan: Plan, suite: Suite, judge: Judge, said: Sequence[Reply], folder: Path) -> list[Verdict]:
    """One verdict a reply; what was judged before is read, the rest is judged and written batch by batch."""
    with Journal(folder / f"verdicts.{judge.fingerprint[:16]}.jsonl") as journal:
        if plan.retry_unscored:
            kept = [row for row in journal.rows if row[3] is not None]
            if len(kept) < len(journal.rows):
                journal.rewrite(kept)
        # A verdict belongs to a text: one of a reply that was since asked for anew is no verdict.
        marks = {reply.key: _mark(reply) for reply in said}
        known = {tuple(row[:3]): Verdict(row[3], row[4]) for row in journal.rows if marks.get(tuple(row[:3])) == row[5]}
        given = [reply for reply in said if reply.text is not None]
        with progress(f"{suite.name}: {judge.spec}", len(given), sum(r.key in known for r in given)) as advance:
            for start in range(0, len(given), JUDGED_AT_ONCE):
                batch = given[start : start + JUDGED_AT_ONCE]
                missing = [reply for reply in batch if reply.key not in known]
                if not missing:
                    continue
                # A batch that was cut in two is judged again whole: its neighbours move a neural score's last digits.
                asked = missing if plan.retry_unscored else batch
                # A continuation is judged for what it says itself: its prompt may be bad enough alone.
                contexts = [() if suite.kind == "continuations" else reply.context for reply in asked]
                verdicts = safe_score(
                    judge, [reply.text or "" for reply in asked], contexts, [SCORED_SPEAKER] * len(asked)
                )
                fresh = [(r.key, v) for r, v in zip(asked, verdicts, strict=True) if r.key not in known]
                journal.append([*key, verdict.p_unsafe, verdict.reason, marks[key]] for key, verdict in fresh)
                known.update(fresh)
                advance(len(fresh))
    return [
        unscored(reply.reason or "the model gave no reply") if reply.text is None else known[reply.key]
        for reply in said
    ]


def _mark(reply: Reply) -> str:
    """A short hash of a reply and everything before it."""
    return hashlib.sha256(json.dumps([*reply.context, reply.text]).encode()).hexdigest()[:16]


def _records(plan: Plan, suite: Suite, said: Sequence[Reply], verdicts: Sequence[Sequence[Verdict]]) -> list[Record]:
    texts, contexts = [reply.text for reply in said], [reply.context for reply in said]
    nothing: list[float | None] = [None] * len(said)
    # Both detectors were trained on replies in dialogue, and a continuation is none.
    dialogue = suite.kind != "continuations"
    evasive = plan.evasive.score(texts, contexts) if dialogue else nothing
    coherent = plan.coherence.score(texts, contexts) if dialogue else nothing
    return [
        Record(
            id=reply.item.id,
            sample=reply.sample,
            turn=reply.turn,
            conversation=reply.item.conversation,
            category=reply.item.category,
            group=reply.item.group,
            p_unsafe=[listed[at].p_unsafe for listed in verdicts],
            reasons=[listed[at].reason for listed in verdicts],
            evasive=evasive[at],
            coherence=coherent[at],
        )
        for at, reply in enumerate(said)
    ]


def _result(
    plan: Plan,
    suite: Suite,
    said: Sequence[Reply],
    records: Sequence[Record],
    nats: Mapping[str, tuple[float, int]],
    on_topic: Sequence[Verdict] | None,
) -> SuiteResult:
    found = measures_of(
        suite=suite,
        records=records,
        texts=[reply.text for reply in said],
        contexts=[reply.context for reply in said],
        losses=nats,
        judges=plan.judges,
        further=Further(
            plan.word_list,
            plan.topic_judge,
            None if on_topic is None else [verdict.p_unsafe for verdict in on_topic],
            [reply.guard for reply in said],
        ),
        evasive_threshold=plan.evasive.threshold,
        seed=zlib.crc32(f"{plan.seed} intervals {suite.name}".encode()),
        confidence=plan.confidence,
    )
    return SuiteResult(
        version=suite.version,
        kind=suite.kind,
        title=suite.title,
        about=suite.about,
        sha256=suite.sha256,
        items=len(suite.items),
        samples=suite.samples,
        measures=found.measures,
        by_category=found.by_category,
        by_group=found.by_group,
        survival=found.survival,
        records=records,
    )


def _agreement(plan: Plan, suite: Suite, verdicts: Sequence[Sequence[Verdict]]) -> Iterator[dict[str, Any]]:
    for a, b in combinations(range(len(plan.judges)), 2):
        first, second = plan.judges[a], plan.judges[b]
        figures = agreement_of(verdicts[a], verdicts[b], first.threshold, second.threshold)
        decisions = [
            [None if (unsafe := is_unsafe(v, judge.threshold)) is None else float(unsafe) for v in verdicts[which]]
            for which, judge in ((a, first), (b, second))
        ]
        yield {
            "a": first.spec,
            "b": second.spec,
            "suite": suite.name,
            **figures._asdict(),
            "alpha": krippendorff_alpha(decisions, "nominal"),
        }


def _failures(plan: Plan, suite: Suite, result: SuiteResult) -> Iterator[str]:
    for at, judge in enumerate(plan.judges):
        missing = [r.reasons[at] for r in result.records if r.p_unsafe[at] is None]
        total = len(result.records)
        if total and len(missing) / total > plan.max_unscored:
            common = max(sorted({*missing}, key=str), key=missing.count)
            share = math.floor(1000 * len(missing) / total) / 10
            yield (
                f"{len(missing)} of {total} replies ({share:g} %) of the suite {suite.name!r} are unscored by "
                f"{judge.spec} (most often: {common})."
            )
