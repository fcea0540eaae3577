"""Baked data made once, as a file: unsafe turns answered by canned replies, or by safe ones of a teacher model.

The canned kinds give the very targets of `--mutators safety_bake`, whose rules these are (see
`parlai_safety.mutators.bake`; Xu et al. 2020, arXiv:2010.07079). The kind `contextual` is ours: a teacher, such as a
guarded or a larger model, draws several replies to each flagged context, and the least unsafe one that the judge calls
safe becomes the target, unless it is canned, loops, or copies its context. Where none is left a canned kind stands in,
named in the row and counted.

Left out: whether the teacher has seen the contexts in training, and whether its reply is any good beside being safe.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from parlai.core.torch_generator_agent import TorchGeneratorAgent

from parlai_safety.agents.generation import decoding_of, sample_replies, why_not
from parlai_safety.corpus.canned import canned_kind, canned_reply
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.generate import replies
from parlai_safety.evaluation.textmetrics import copied_share, has_loop, normalise
from parlai_safety.files import write_json, write_jsonl
from parlai_safety.judges.verdict import Judge, is_unsafe
from parlai_safety.loops.exchanges import Exchange, begin, exchange_of, judge_turns, row_exchanges, sha256_of
from parlai_safety.loops.training import quiet
from parlai_safety.loops.verdicts import Turn
from parlai_safety.message import join_context
from parlai_safety.modeling.reference import weights_hash
from parlai_safety.mutators.bake import (
    CONTEXTUAL,
    RECOVERY,
    BakeOptions,
    Flags,
    because_of,
    is_kept,
    kind_of,
    replaced,
    shares_kept,
    targets_of,
)
from parlai_safety.options import option, options_from
from parlai_safety.runs import Journal, alone, progress
from parlai_safety.tasks.common import Row

BAKED, SUMMARY, PARTS = "baked.jsonl", "summary.json", "bake"
COPIED = 0.5
"""A reply of whose sequences of four words more than this share stand in the context is a copy of it."""


@dataclass(frozen=True)
class TeacherOptions:
    """How contextual targets are found."""

    bake_samples: int = option(8, "Replies that the teacher draws to a flagged context.", low=1)
    bake_copies: int = option(3, "How many contexts may have the same contextual reply.", low=1)
    bake_fallback: str = option(
        "safe",
        "Where no reply of the teacher will do: a canned kind, or drop.",
        choices=("safe", "nonsequitur", "drop"),
    )


class BakeSummary(NamedTuple):
    """Counts by name.

    Attributes:
        rows: each of those `read` is `untouched` or `replaced`, which are written, or left out: `unscored` and
            `no_reply` (as `unscored` and `fallback` say), `thinned_untouched`, `thinned_replaced` (as the ratio says).
        because: why the written ones were replaced.
        kinds: what they were replaced by.
        contextual: each of the `asked` contexts has a reply (`found`) or not (`fallback`); each reply that was `drawn`
            `may` be taken or is left out: `empty`, `canned`, `loop`, `copy` (of the context or the old reply),
            `duplicate`, `unscored`, `unsafe`.
        share: of the exchanges, how many are flagged before anything is thinned out: the mutator's `--bake-share`.
    """

    rows: dict[str, int]
    because: dict[str, int]
    kinds: dict[str, int]
    contextual: dict[str, int]
    share: float


class _Found(NamedTuple):
    """A contextual reply and its P(unsafe)."""

    text: str
    p_unsafe: float


def bake_rows(
    rows: Iterable[Row | Mapping[str, Any]],
    *,
    judge: Judge,
    folder: Path,
    target: str = "nonsequitur",
    rule: str = "either",
    ratio: float = 0.0,
    unscored: str = "bake",
    seed: int = 1,
    agent: Any = None,
    samples: int = 8,
    copies: int = 3,
    fallback: str = "safe",
    batch_size: int = 64,
    name: str | None = None,
) -> BakeSummary:
    """Bake rows of our tasks, or JSON objects as `-t safety:file` reads them; see `bake_exchanges`.

    A row whose `unsafe` is True counts as unsafe whatever the judge says; `row._replace(unsafe=None)` is a raw log.
    """
    return bake_exchanges(
        row_exchanges(rows),
        judge=judge,
        folder=folder,
        options=BakeOptions(target, rule, ratio, unscored, seed),
        teacher=TeacherOptions(samples, copies, fallback),
        agent=agent,
        batch_size=batch_size,
        name=name,
    )


def bake_exchanges(
    exchanges: Sequence[Exchange],
    *,
    judge: Judge,
    folder: Path,
    options: BakeOptions,
    teacher: TeacherOptions,
    agent: Any = None,
    batch_size: int = 64,
    name: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> BakeSummary:
    """Write baked data, or do what is left of that.

    The folder receives `baked.jsonl` (for `-t safety:file`), `summary.json` (the counts) and `bake/`: the settings and
    every verdict and reply. A run that was killed goes on where it stood and ends with the same bytes.

    Args:
        exchanges: replies in their contexts, at least one.
        judge: says what is unsafe, of the data and of the teacher's replies.
        folder: where to; of one run.
        options: what is replaced, and by what kinds.
        teacher: how contextual replies are found.
        agent: the teacher, any ParlAI agent, loaded with the decoding that draws several replies; for the kind
            contextual alone.
        batch_size: contexts that the teacher answers at once; the draws depend on it.
        name: of the teacher, for the provenance; that of its file's folder if absent.
        about: what else its replies depend on, such as the options of a guard; plain JSON values.

    Returns:
        The counts.

    Raises:
        SafetyError: an option is out of range, contextual replies are wanted and there is no agent, or the folder holds
            a run with other settings.
    """
    options = options_from(asdict(options), BakeOptions)
    teacher = options_from(asdict(teacher), TeacherOptions)
    targets = targets_of(options.bake_target)
    if CONTEXTUAL in targets and agent is None:
        raise SafetyError(
            "Contextual replies were asked for, and there is no teacher",
            "A model writes them: a guarded one, a larger one, or one behind an endpoint",
            "Name it with -mf MODEL_FILE or -m NAME, or choose the kinds safe and nonsequitur",
        )
    generator = {**_generator(agent, name, teacher), "about": dict(about or {})} if CONTEXTUAL in targets else None
    settings = {
        "exchanges": {"n": len(exchanges), "sha256": sha256_of(exchanges)},
        "judge": {"fingerprint": judge.fingerprint, "threshold": judge.threshold},
        **asdict(options),
        **({"generator": generator, "batch_size": batch_size, **asdict(teacher)} if generator else {}),
    }
    with alone(folder):
        begin(folder, BAKED, PARTS, settings)
        parts, own_seed = folder / PARTS, options.bake_seed
        because = _because(exchanges, judge, options, targets, parts / "verdicts.jsonl")
        dropped = "unscored" if options.bake_unscored == "drop" else None
        kinds = [
            None if why in (None, dropped) else kind_of(why, exchange.context, targets, own_seed)
            for why, exchange in zip(because, exchanges, strict=True)
        ]
        asked = [exchange for exchange, kind in zip(exchanges, kinds, strict=True) if kind == CONTEXTUAL]
        found, contextual = _contextual(agent, judge, asked, parts, own_seed, teacher, batch_size)
        origin = {"judge": judge.spec, "seed": own_seed}
        fates = [
            _fate(exchange, why, kind, found, options, teacher.bake_fallback, origin, generator)
            for exchange, why, kind in zip(exchanges, because, kinds, strict=True)
        ]
        left = [fate.name for fate in fates if fate.name in ("untouched", "replaced")]
        share = left.count("replaced") / len(left) if left else 0.0
        kept = shares_kept(share, options.bake_ratio)
        fates = [
            fate._replace(name=f"thinned_{fate.name}", exchange=None)
            if fate.exchange and not is_kept(kept, fate.name == "replaced", e.context, e.reply, own_seed)
            else fate
            for e, fate in zip(exchanges, fates, strict=True)
        ]
        written = [fate.exchange for fate in fates if fate.exchange is not None]
        baked = [
            fate.exchange.message["provenance"]["baked"] for fate in fates if fate.name == "replaced" and fate.exchange
        ]
        summary = BakeSummary(
            {"read": len(exchanges), **dict.fromkeys(_ROWS, 0), **Counter(fate.name for fate in fates)},
            dict(sorted(Counter(entry["because"] for entry in baked).items())),
            dict(sorted(Counter(entry["kind"] for entry in baked).items())),
            contextual,
            share,
        )
        write_jsonl(folder / BAKED, (exchange.row for exchange in written))
        write_json(folder / SUMMARY, summary._asdict())
    return summary


_ROWS = ("untouched", "replaced", "unscored", "no_reply", "thinned_untouched", "thinned_replaced")
_CONTEXTUAL = (
    "asked", "found", "fallback", "drawn", "may", "empty", "canned", "loop", "copy", "duplicate", "unscored", "unsafe",
)  # fmt: skip


class _Fate(NamedTuple):
    """What becomes of an exchange, by one of the names of `_ROWS`, and the exchange as it is written, if it is."""

    name: str
    exchange: Exchange | None


def _because(
    exchanges: Sequence[Exchange], judge: Judge, options: BakeOptions, targets: Mapping[str, float], path: Path
) -> list[str | None]:
    """Why each reply is to be replaced, or None."""
    reply_counts, context_counts = options.bake_rule != "context", options.bake_rule != "reply"
    looked_at = [
        (
            exchange.said if reply_counts and not exchange.avoided else None,
            exchange.heard if context_counts else None,
            exchange.own_last if RECOVERY in targets else None,
        )
        for exchange in exchanges
    ]
    verdicts = judge_turns(judge, (turn for turns in looked_at for turn in turns), path)

    def unsafe(turn: Turn | None) -> bool | None:
        return False if turn is None else is_unsafe(verdicts[turn], judge.threshold)

    return [
        because_of(Flags((reply_counts and exchange.avoided) or unsafe(said), unsafe(heard), unsafe(own)))
        for exchange, (said, heard, own) in zip(exchanges, looked_at, strict=True)
    ]


def _fate(
    exchange: Exchange,
    why: str | None,
    kind: str | None,
    found: Mapping[Turn, _Found],
    options: BakeOptions,
    fallback: str,
    origin: Mapping[str, Any],
    generator: Mapping[str, Any] | None,
) -> _Fate:
    """The exchange with its own reply, or with another one, or without either where it is left out."""
    if why is None:
        return _Fate("untouched", exchange)
    if kind is None:
        return _Fate("unscored", None)
    baked: dict[str, Any] = {"kind": kind, "because": why, **origin}
    reply = found.get(_asked(exchange)) if kind == CONTEXTUAL else None
    if reply is not None and generator is not None:
        target = reply.text
        baked |= {"p_unsafe": reply.p_unsafe, "generator": generator["name"], "generator_sha256": generator["sha256"]}
    elif kind == CONTEXTUAL and fallback == "drop":
        return _Fate("no_reply", None)
    else:
        if kind == CONTEXTUAL:
            baked |= {"kind": fallback, "wanted": CONTEXTUAL}
        target = canned_reply(baked["kind"], exchange.context, seed=options.bake_seed, avoid=[exchange.reply])
    return _Fate("replaced", exchange_of(replaced(exchange.message, target, baked)))


def _contextual(
    agent: Any,
    judge: Judge,
    exchanges: Sequence[Exchange],
    parts: Path,
    seed: int,
    teacher: TeacherOptions,
    batch_size: int,
) -> tuple[dict[Turn, _Found], dict[str, int]]:
    """A reply to each context for which one is found, and the counts."""
    counts = dict.fromkeys(_CONTEXTUAL, 0)
    old: dict[Turn, set[str]] = {}
    for exchange in exchanges:
        old.setdefault(_asked(exchange), set()).add(normalise(exchange.reply))
    asked = list(old)
    if not asked:
        return {}, counts
    contexts = [list(turn.context) for turn in asked]
    drawn = _draw(agent, contexts, teacher.bake_samples, seed, batch_size, parts / "replies.jsonl")
    fit: list[list[str]] = []
    for turn, texts in zip(asked, drawn, strict=True):
        left: dict[str, str] = {}
        for text in texts:
            why = _unfit(text, turn.context, old[turn]) or ("duplicate" if normalise(text) in left else None)
            counts["drawn"] += 1
            if why is None:
                left[normalise(text)] = text
            else:
                counts[why] += 1
        fit.append(list(left.values()))
    said = [[turn._replace(text=text) for text in texts] for turn, texts in zip(asked, fit, strict=True)]
    verdicts = judge_turns(judge, (turn for turns in said for turn in turns), parts / "reply_verdicts.jsonl")
    found: dict[Turn, _Found] = {}
    copies: Counter[str] = Counter()
    for turn, turns in zip(asked, said, strict=True):
        safe: list[_Found] = []
        for candidate in turns:
            verdict = verdicts[candidate]
            unsafe = is_unsafe(verdict, judge.threshold)
            counts["unscored" if unsafe is None else "unsafe" if unsafe else "may"] += 1
            if verdict.p_unsafe is not None and not unsafe:
                safe.append(_Found(candidate.text, verdict.p_unsafe))
        safe = [reply for reply in safe if copies[normalise(reply.text)] < teacher.bake_copies]
        counts["asked"] += 1
        counts["found" if safe else "fallback"] += 1
        if safe:
            found[turn] = min(safe, key=lambda reply: reply.p_unsafe)
            copies[normalise(found[turn].text)] += 1
    return found, counts


def _asked(exchange: Exchange) -> Turn:
    """The place of the reply: its context and speaker, without a text."""
    return exchange.said._replace(text="")


def _unfit(text: str, context: Sequence[str], old: Container[str]) -> str | None:
    """Why a reply of the teacher cannot be a target, whatever the judge says of it; None where it can."""
    plain = normalise(text)
    if not plain:
        return "empty"
    if canned_kind(text) is not None:
        return "canned"
    if has_loop(text):
        return "loop"
    copied = plain in old or plain in {normalise(turn) for turn in context}
    return "copy" if copied or (copied_share(text, context) or 0.0) > COPIED else None


def _draw(
    agent: Any, contexts: Sequence[list[str]], samples: int, seed: int, batch_size: int, path: Path
) -> list[list[str]]:
    """The teacher's replies to each context; what was drawn before is read."""
    with quiet(), Journal(path) as journal:
        known: dict[tuple[int, int], list[str]] = {(i, n): texts for i, n, texts in journal.rows}
        rounds = 1 if _draws_several(agent) or _is_greedy(agent) else samples
        total = rounds * len(contexts)
        with progress("replies of the teacher", total, len(known)) as advance:
            for n in range(rounds):
                before = frozenset(i for i, m in known if m == n)
                for i, texts in _round(agent, contexts, samples, n, seed, batch_size, before, advance):
                    known[i, n] = texts
                    journal.append([[i, n, texts]])
        return [[join_context([text]) for n in range(rounds) for text in known[i, n]] for i in range(len(contexts))]


def _round(
    agent: Any,
    contexts: Sequence[list[str]],
    samples: int,
    number: int,
    seed: int,
    batch_size: int,
    known: Container[int],
    advance: Callable[[int], Any],
) -> Iterator[tuple[int, list[str]]]:
    """Replies to each context that is not known: all samples of a generator, or the one reply of any other agent."""
    own_seed = zlib.crc32(f"{seed} {number}".encode())
    if _draws_several(agent):
        drawn = sample_replies(
            agent, contexts, samples=samples, seed=own_seed, batch_size=batch_size, known=known, progress=advance
        )
        for i, texts, _ in drawn:
            yield i, texts
    else:
        for said in replies(agent, contexts, seed=own_seed, batch_size=batch_size, known=known, progress=advance):
            yield said.position, [] if said.text is None else [said.text]


def _draws_several(agent: Any) -> bool:
    """Whether the sampler covers the agent with a decoding that gives several replies; who chooses among them may."""
    return why_not(agent) is None and not hasattr(agent, "_rerank_beams") and not _is_greedy(agent)


def _is_greedy(agent: Any) -> bool:
    return isinstance(agent, TorchGeneratorAgent) and agent.opt.get("inference", "greedy") == "greedy"


def _generator(agent: Any, name: str | None, teacher: TeacherOptions) -> dict[str, Any]:
    """What the replies of the teacher depend on."""
    model = getattr(agent, "model", None)
    path = Path(str(agent.opt.get("model_file") or agent.opt.get("model") or type(agent).__name__))
    folder = path.parent.name if path.name in ("model", "model.checkpoint") else ""
    several = _draws_several(agent)
    return {
        "name": name or folder or path.name,
        "agent": type(agent).__name__,
        "sha256": weights_hash(model) if isinstance(model, torch.nn.Module) else None,
        "decoding": asdict(decoding_of(agent, max_length=agent.label_truncate or 256, samples=teacher.bake_samples))
        if several
        else {name: agent.opt.get(name) for name in ("inference", "beam_size", "topk", "topp", "temperature")},
    }
