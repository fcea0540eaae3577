"""Triples for adversarial DPO: to each context a chosen, a rejected and a toxic reply that one model itself has drawn.

The model answers contexts that its training did not see, and a judge sorts the answers into safe and unsafe ones;
behind its control token the same model gives the toxic reply. Every reply that was drawn is kept with its verdict, so
that the sorting can be done again under other rules without a model. Pairs that people wrote can stand beside them: for
these the toxic reply alone is drawn.

Source: the pipeline of adversarial DPO (arXiv:2405.12900), as second-hand accounts tell it; how many replies, which of
them, and that a toxic reply is checked are choices of ours. Left out: more than one triple a context.
"""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from parlai_safety.agents.control import toxic_control
from parlai_safety.agents.generation import decoding_of, sample_replies
from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.evaluation.textmetrics import normalise
from parlai_safety.files import read_jsonl, write_json, write_jsonl
from parlai_safety.judges.verdict import Judge, Verdict, is_unsafe, unfit
from parlai_safety.loops.training import quiet
from parlai_safety.loops.verdicts import Turn, journaled_verdicts
from parlai_safety.modeling.reference import weights_hash
from parlai_safety.options import flag, option, options_from
from parlai_safety.runs import Journal, Run, alone, progress

TRIPLES, SUMMARY, DRAWS, SAMPLES = "triples.jsonl", "summary.json", "draws", "samples.jsonl"


@dataclass(frozen=True)
class TripleOptions:
    """How many replies are drawn, and which of them make a triple."""

    samples: int = option(8, "Plain replies that are drawn to each context.", low=2)
    toxic_samples: int = option(4, "Replies drawn to each context behind the control token; 0 for none.", low=0)
    toxic_check: bool = option(True, "Keep a toxic reply only if the judge says too that it is unsafe.")
    toxic_required: bool = option(False, "Leave out a context without a toxic reply, rather than keep its pair.")
    margin: float = option(
        0.0, "A reply whose P(unsafe) is nearer than this to the judge's threshold is dropped.", low=0.0, high=1.0
    )
    pick: str = option(
        "drawn",
        "Which of a context's clear replies is taken: one by a seeded draw, or the safest and the most unsafe one. The "
        "safest ones are often canned evasions.",
        choices=("drawn", "extreme"),
    )
    copies: int = option(2, "How often one text may be the chosen reply, over all contexts.", low=1)


class Sample(NamedTuple):
    """A reply and what the judge says of it."""

    text: str
    verdict: Verdict


class HumanPair(NamedTuple):
    """Two replies to one context, chosen and rejected by people."""

    context: list[str]
    chosen: str
    rejected: str


class Drawn(NamedTuple):
    """All that is known of one context.

    Attributes:
        context: turns, oldest first.
        plain: the model's replies; none where people wrote the pair.
        toxic: its replies behind the control token.
        human: the chosen and the rejected reply that people wrote, or None.
    """

    context: list[str]
    plain: list[Sample]
    toxic: list[Sample]
    human: tuple[Sample, Sample] | None = None


class Triple(NamedTuple):
    """Replies to one context.

    Attributes:
        position: of the context.
        chosen: the safe reply.
        rejected: the unsafe reply.
        toxic: the reply behind the control token, or None.
        numbers: which sample each of the three is; None for a reply that people wrote, or that is not there.
    """

    position: int
    chosen: Sample
    rejected: Sample
    toxic: Sample | None
    numbers: tuple[int | None, int | None, int | None]


class TriplesSummary(NamedTuple):
    """Counts by name.

    Attributes:
        contexts: each of those `asked` has a row (`triples`, or `pairs` without a toxic reply) or is one of `no_safe`,
            `no_unsafe`, `neither` and `no_toxic` (left out as `toxic_required` says). `human` of those asked brought
            their pair.
        plain: each reply that was `drawn` is a candidate (`safe`, `unsafe`) or dropped: `unscored`, `unclear` (within
            the margin), `tie` (one text with both verdicts), `duplicate`, `repeated` (chosen as often as allowed).
        toxic: each reply that was `drawn` behind the token is a candidate (`kept`) or dropped: `safe`, `unscored`,
            `unclear`, `tie`, `duplicate`, `as_chosen` (it says the same as the chosen reply).
    """

    contexts: dict[str, int]
    plain: dict[str, int]
    toxic: dict[str, int]


_CONTEXTS = ("asked", "human", "triples", "pairs", "no_safe", "no_unsafe", "neither", "no_toxic")
_PLAIN = ("drawn", "safe", "unsafe", "unscored", "unclear", "tie", "duplicate", "repeated")
_TOXIC = ("drawn", "kept", "safe", "unscored", "unclear", "tie", "duplicate", "as_chosen")


def make_triples(
    agent: Any,
    judge: Judge,
    contexts: Sequence[Sequence[str]],
    folder: Path,
    *,
    seed: int = 1,
    batch_size: int = 64,
    human: Sequence[HumanPair] = (),
    name: str | None = None,
    **options: Any,
) -> TriplesSummary:
    """Draw replies, have them judged and write the triples, or do what is left of that.

    The folder receives `triples.jsonl` (the rows, which `-t safety:file` reads), `samples.jsonl` (every reply with its
    verdict), `summary.json` (the counts) and `draws/run.json` (the settings). A run that was killed goes on where it
    stood and ends with the same bytes. Toxic replies are drawn to every context, also where no pair is
    found: which ones are drawn then depends on no judge, and the samples can be sorted again under other rules.

    Args:
        agent: the model, loaded with the decoding that draws several replies (top-k, nucleus or beam), and with the
            control token unless `toxic_samples` is 0.
        judge: sorts the replies.
        contexts: turns, oldest first; none of which the model was trained on.
        folder: where to; of one run.
        seed: of the draws.
        batch_size: contexts that the model answers at once; the draws depend on it.
        human: pairs that people wrote. Their two replies stay what they are, whatever the judge says.
        name: of the model, for the provenance; that of its file's folder if absent.
        options: fields of `TripleOptions`.

    Returns:
        The counts.

    Raises:
        SafetyError: the agent lacks the control token, answers as the toxic model anyway, or draws one reply a context
            only; an option is unknown or out of range; or the folder holds a run with other settings.
    """
    wanted = _options(options)
    _check_agent(agent, wanted)
    asked = [list(context) for context in contexts] + [list(pair.context) for pair in human]
    if not asked:
        raise SafetyError(
            "There is no context to be answered",
            "Each triple is three replies to one context",
            "Name a file or a task with at least one context",
        )
    generator = {"name": name or _name(agent), "sha256": weights_hash(agent.model)}
    decoding = asdict(decoding_of(agent, max_length=agent.label_truncate or 256, samples=wanted.samples))
    settings = {
        "contexts": {"n": len(contexts), "human": len(human), "sha256": _sha256([asked, [list(p) for p in human]])},
        "generator": generator,
        "decoding": decoding,
        "judge": {"fingerprint": judge.fingerprint, "threshold": judge.threshold},
        "seed": seed,
        "batch_size": batch_size,
        **asdict(wanted),
    }
    with alone(folder):
        if (folder / TRIPLES).exists() and not (folder / DRAWS).exists():
            raise SafetyError(
                f"The folder {str(folder)!r} holds a {TRIPLES} that no run of ours has made there",
                "It would be overwritten",
                "Give another folder, or move that file",
            )
        Run(folder / DRAWS, json.loads(json.dumps(settings)))
        drawn = _drawn(agent, judge, asked, human, folder, wanted, seed, batch_size)
        triples, summary = triples_of(drawn, judge.threshold, wanted, seed)
        provenance = {
            "generator": generator["name"],
            "generator_sha256": generator["sha256"],
            "judge": judge.spec,
            "judge_fingerprint": judge.fingerprint,
            "threshold": judge.threshold,
            "seed": seed,
            "decoding": {key: value for key, value in decoding.items() if key not in ("samples", "blocked")},
        }
        write_jsonl(folder / TRIPLES, (_row(triple, drawn[triple.position], provenance) for triple in triples))
        write_json(folder / SUMMARY, summary._asdict())
    return summary


def triples_of(
    drawn: Sequence[Drawn], threshold: float, options: TripleOptions, seed: int
) -> tuple[list[Triple], TriplesSummary]:
    """Sort replies into triples, at most one a context.

    Of a context's plain replies these are dropped: unscored ones, those nearer to the threshold than the margin, those
    that say the same (after normalisation) as another that has the contrary verdict, and copies. Of the safe ones left
    and the unsafe ones left, one each is taken by a seeded draw: the reply that a judge finds safest is often a canned
    evasion, and the one that it finds most unsafe is the one with the plainest words. A toxic reply is drawn from
    those that the judge finds unsafe, likewise, and never is the chosen reply again.

    Args:
        drawn: the replies with their verdicts.
        threshold: of the judge.
        options: the rules.
        seed: of the draws; a context's draw depends on its position, and on no other context but for `copies`.

    Returns:
        The triples in the order of the contexts, and the counts.
    """
    summary = TriplesSummary(*(dict.fromkeys(names, 0) for names in (_CONTEXTS, _PLAIN, _TOXIC)))
    copies: Counter[str] = Counter()
    found = []
    for position, item in enumerate(drawn):
        generator = random.Random(f"{seed} {position}")
        kept, dropped = _sort(item.plain, threshold, options.margin)
        safe = [n for n in kept[False] if copies[normalise(item.plain[n].text)] < options.copies]
        here = {"drawn": len(item.plain), "safe": len(safe), "unsafe": len(kept[True])}
        _add(summary.plain, {**here, **dropped, "repeated": len(kept[False]) - len(safe)})
        chosen = rejected = toxic = None
        pair = item.human
        if pair is None and safe and kept[True]:
            chosen = _pick(safe, item.plain, options.pick, generator, unsafe=False)
            rejected = _pick(kept[True], item.plain, options.pick, generator, unsafe=True)
            pair = item.plain[chosen], item.plain[rejected]
        candidates, dropped = _toxic(item.toxic, pair, threshold, options)
        _add(summary.toxic, {"drawn": len(item.toxic), "kept": len(candidates), **dropped})
        if pair is None:
            outcome = "no_unsafe" if safe else "no_safe" if kept[True] else "neither"
        elif not candidates and options.toxic_required:
            outcome = "no_toxic"
        else:
            outcome = "triples" if candidates else "pairs"
            if candidates:
                toxic = _pick(candidates, item.toxic, options.pick, generator, unsafe=True)
            if chosen is not None:
                copies[normalise(pair[0].text)] += 1
            third = None if toxic is None else item.toxic[toxic]
            found.append(Triple(position, *pair, third, (chosen, rejected, toxic)))
        _add(summary.contexts, {"asked": 1, "human": item.human is not None, outcome: 1})
    return found, summary


def read_samples(path: Path) -> list[Drawn]:
    """The replies of a `samples.jsonl` with their verdicts, to be sorted again by `triples_of`."""

    def samples(row: dict[str, Any], name: str) -> list[Sample]:
        return [Sample(s["text"], Verdict(s["p_unsafe"], s["reason"])) for s in row[name]]

    found = []
    for row in read_jsonl(path):
        human = samples(row, "human")
        pair = (human[0], human[1]) if human else None
        found.append(Drawn(row["context"], samples(row, "plain"), samples(row, "toxic"), pair))
    return found


def _options(options: Mapping[str, Any]) -> TripleOptions:
    names = [field.name for field in fields(TripleOptions)]
    for name in options:
        if name not in names:
            raise SafetyError(
                f"There is no option {name!r} of triples",
                f"The options are {', '.join(names)}",
                did_you_mean(name, names, "Choose one of them"),
            )
    return options_from(options, TripleOptions)


def _check_agent(agent: Any, wanted: TripleOptions) -> None:
    switch = getattr(agent, "_switch", None)
    if switch is not None and switch.on:
        raise SafetyError(
            "The model answers as its inner toxic model (--toxic-control true)",
            "The plain replies are to be those that it gives without the control token",
            "Leave --toxic-control out: the toxic replies are drawn behind the token all the same",
        )
    if wanted.toxic_samples and getattr(agent, "toxic_id", None) is None:
        raise SafetyError(
            "The model has no control token",
            "Toxic replies are drawn behind the token [TOXIC], which the model must have learnt",
            f"Train it with --toxic-token true --mutators safety_toxic_token, or give {flag('toxic_samples')} 0 for "
            "pairs without toxic replies",
        )


def _name(agent: Any) -> str:
    path = Path(str(agent.opt.get("model_file") or type(agent).__name__))
    return path.parent.name if path.name in ("model", "model.checkpoint") and path.parent.name else path.name


def _drawn(
    agent: Any,
    judge: Judge,
    asked: Sequence[list[str]],
    human: Sequence[HumanPair],
    folder: Path,
    wanted: TripleOptions,
    seed: int,
    batch_size: int,
) -> list[Drawn]:
    """Every reply with its verdict, drawn and judged batch by batch; `samples.jsonl` holds them at the end."""
    path = folder / SAMPLES
    parts = {kind: folder / DRAWS / f"{kind}.part.jsonl" for kind in ("plain", "toxic", "verdicts")}
    if not path.is_file():
        own = asked[: len(asked) - len(human)]
        plain = _replies(agent, "plain", own, parts["plain"], wanted.samples, seed, batch_size)
        toxic = _replies(agent, "toxic", asked, parts["toxic"], wanted.toxic_samples, seed, batch_size)
        texts = {
            "plain": [*plain, *([] for _ in human)],
            "toxic": toxic,
            "human": [*([] for _ in own), *([pair.chosen, pair.rejected] for pair in human)],
        }
        said = [(i, kind, text) for i in range(len(asked)) for kind in texts for text in texts[kind][i]]
        turns = [Turn(tuple(asked[i]), text, "bot") for i, _, text in said]
        verdicts = journaled_verdicts(judge, turns, parts["verdicts"])
        rows: list[dict[str, Any]] = [{"context": context, **{kind: [] for kind in texts}} for context in asked]
        for (i, kind, text), verdict in zip(said, verdicts, strict=True):
            rows[i][kind].append({"text": text, **verdict._asdict()})
        write_jsonl(path, rows)
    for part in parts.values():
        part.unlink(missing_ok=True)
    return read_samples(path)


def _replies(
    agent: Any, kind: str, contexts: Sequence[list[str]], path: Path, samples: int, seed: int, batch_size: int
) -> list[list[str]]:
    """The replies to each context; what was drawn before is read."""
    if not samples:
        return [[] for _ in contexts]
    with quiet(), Journal(path) as journal:
        known: dict[int, list[str]] = dict(journal.rows)
        before = frozenset(known)
        if len(before) < len(contexts):
            with (
                toxic_control(agent) if kind == "toxic" else nullcontext(),
                progress(f"{kind} replies", len(contexts), len(before)) as advance,
            ):
                for i, texts, _ in sample_replies(
                    agent,
                    contexts,
                    samples=samples,
                    seed=zlib.crc32(f"{seed} {kind}".encode()),
                    batch_size=batch_size,
                    known=before,
                    progress=advance,
                ):
                    known[i] = texts
                    journal.append([[i, texts]])
    return [known[i] for i in range(len(contexts))]


def _row(triple: Triple, item: Drawn, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """One line of `triples.jsonl`; `toxic`, and what is told of it, is a list of one or none."""

    def listed(value: Any) -> list[Any]:
        return [] if triple.toxic is None else [value]

    chosen, rejected, toxic = triple.numbers
    return {
        "context": item.context,
        "chosen": triple.chosen.text,
        "rejected": triple.rejected.text,
        "toxic": listed(triple.toxic and triple.toxic.text),
        "scores": {
            "chosen": triple.chosen.verdict.p_unsafe,
            "rejected": triple.rejected.verdict.p_unsafe,
            "toxic": listed(triple.toxic and triple.toxic.verdict.p_unsafe),
        },
        "provenance": {
            "source": "own replies" if item.human is None else "human",
            **provenance,
            "samples": {"chosen": chosen, "rejected": rejected, "toxic": listed(toxic)},
        },
    }


def _sort(samples: Sequence[Sample], threshold: float, margin: float) -> tuple[dict[bool, list[int]], Counter[str]]:
    """Which samples are clearly unsafe (True) and clearly safe (False), and how many are neither by reason."""
    dropped: Counter[str] = Counter()
    alike: dict[str, list[tuple[int, bool]]] = {}
    for number, (text, verdict) in enumerate(samples):
        unsafe = is_unsafe(verdict, threshold)
        if unsafe is None or verdict.p_unsafe is None:
            dropped["unscored"] += 1
        elif abs(verdict.p_unsafe - threshold) < margin:
            dropped["unclear"] += 1
        else:
            alike.setdefault(normalise(text), []).append((number, unsafe))
    kept: dict[bool, list[int]] = {True: [], False: []}
    for same in alike.values():
        if len({unsafe for _, unsafe in same}) > 1:
            dropped["tie"] += len(same)
        else:
            number, unsafe = same[0]
            kept[unsafe].append(number)
            dropped["duplicate"] += len(same) - 1
    return kept, dropped


def _toxic(
    samples: Sequence[Sample], pair: tuple[Sample, Sample] | None, threshold: float, options: TripleOptions
) -> tuple[list[int], Counter[str]]:
    """Which toxic samples may be taken beside this pair, and how many may not by reason."""
    if options.toxic_check:
        kept, dropped = _sort(samples, threshold, options.margin)
        candidates = kept[True]
        dropped["safe"] += len(kept[False])
    else:
        said = [n for n, sample in enumerate(samples) if unfit(sample.text) is None]
        distinct = {normalise(samples[n].text): n for n in reversed(said)}
        candidates = sorted(distinct.values())
        dropped = Counter(unscored=len(samples) - len(said), duplicate=len(said) - len(candidates))
    chosen = None if pair is None else normalise(pair[0].text)
    left = [n for n in candidates if normalise(samples[n].text) != chosen]
    dropped["as_chosen"] += len(candidates) - len(left)
    return left, dropped


def _pick(
    numbers: Sequence[int], samples: Sequence[Sample], how: str, generator: random.Random, *, unsafe: bool
) -> int:
    """One of the candidates."""
    if how == "drawn":
        return generator.choice(numbers)
    sign = -1 if unsafe else 1
    return min(numbers, key=lambda n: (sign * (samples[n].verdict.p_unsafe or 0.0), n))


def _add(counts: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        counts[name] += count


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
