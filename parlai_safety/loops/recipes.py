"""`parlai safety_recipes`: the recipes for safety in one table, from one base model on one data set.

Source: Xu et al. 2020, arXiv:2010.07079. The base model learns from everything; a judge that grades nothing flags
replies and last turns of the training talk. From that follow data filters, by utterance and by author, control tokens,
and *baked-in* safety: training data in which what was flagged is answered with a safe response, a non-sequitur, or a
reply in context that the base model itself found and the judge let pass. Beside them stand the ways that ask the judge
while they speak: the guard and reranking. Left out: pre-training on data of that kind, and what people say of the
replies.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from parlai_safety.corpus.canned import canned_kind
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.latency import latencies
from parlai_safety.evaluation.page import percent
from parlai_safety.evaluation.report import Report
from parlai_safety.evaluation.statistics import rate
from parlai_safety.evaluation.suites import spread
from parlai_safety.files import read_jsonl, write_jsonl
from parlai_safety.judges.cache import CachedJudge
from parlai_safety.judges.verdict import Judge, Verdict, is_unsafe, safe_score
from parlai_safety.loops.bake import BAKED as BAKED_FILE
from parlai_safety.loops.bake import BakeSummary, bake_rows
from parlai_safety.loops.filters import KEPT as KEPT_FILE
from parlai_safety.loops.filters import filter_rows
from parlai_safety.loops.job import Job, System
from parlai_safety.loops.known import check_number
from parlai_safety.loops.methods import KEPT, MethodsRecipe, compare, own_stage
from parlai_safety.loops.training import quiet
from parlai_safety.mutators.judged import speaker_of
from parlai_safety.tasks.common import Row
from parlai_safety.tasks.file.agents import read_row

FILTERS = {"utterances": "utterance", "authors": "author"}
"""Own data -> the rule of the filter that makes it."""
BAKED, BAKED_PREFIX = ("safe", "nonsequitur", "recovery", "contextual"), "baked_"
"""Kinds of baked targets; the data of each are `baked_KIND`."""
CONTRASTED_OF = ("baked_contextual", "labelled")
BAKED_OF = ("baked_ratio", "baked_rows", "baked_samples", "decoding")
CONTROLLED, CONTRASTED = "controlled", "baked_contrasted"
"""Data behind control tokens; and baked contextual data beside the base model's own replies with their verdicts."""
SAFE, UNSAFE = "safe", "unsafe"
ORDINARY, LABELLED = "ordinary", "labelled"
DATA, NOTE = "data.jsonl", "note"


@dataclass(frozen=True)
class SafetyRecipe(MethodsRecipe):
    """The settings of the comparison; see `projects/safety_recipes/recipes.yaml` for each key with its meaning."""

    example: ClassVar[str] = "safety_recipes/recipes"
    required: ClassVar[dict[str, set[str]]] = {
        **MethodsRecipe.required,
        "own": {
            "contexts", "samples", "decoding", "weight",
            "author_share", "baked_ratio", "baked_rows", "baked_samples", "latency_contexts",
        },
    }  # fmt: skip
    own_counts: ClassVar[tuple[str, ...]] = (
        *MethodsRecipe.own_counts,
        "baked_rows",
        "baked_samples",
        "latency_contexts",
    )
    kept: ClassVar[Mapping[str, str]] = {
        **KEPT,
        **{name: name for name in (CONTROLLED, CONTRASTED)},
        **{name: name for name in FILTERS},
        **{f"{BAKED_PREFIX}{kind}": f"{BAKED_PREFIX}{kind}" for kind in BAKED},
    }
    title: ClassVar[str] = "Recipes for safety"

    def job(self, out: Path, seed: int, data: Path | None) -> Job:
        """A job whose talk is scored for evasiveness and coherence too."""
        return Job(self, out, seed, data, talk_scores=True)

    def check(self) -> None:
        """As for methods; and the shares are shares.

        Raises:
            SafetyError: one of them is not.
        """
        super().check()
        for name in ("author_share", "baked_ratio"):
            check_number(self.own[name], f"own: {name}", low=0)
            if self.own[name] > 1:
                raise SafetyError(
                    f"own: {name} is {self.own[name]}",
                    "It is a share of the talk, from 0 to 1",
                    f"Write for example {name}: 0.5",
                )

    def own_file(self, system: System, kind: str) -> str:
        """Own replies lie where every comparison has them, data that were filtered or baked each in a folder."""
        return super().own_file(system, kind) if kind in KEPT else f"data/{system.key}/{kind}/{DATA}"

    def make_own(self, job: Job, system: System, kind: str, number: int) -> dict[str, Any]:
        """Own replies, or the training talk as the labeller's verdicts leave it."""
        if kind in KEPT:
            replies = {name: self.own[name] for name in ("contexts", "samples", "decoding", "weight")}
            return job.own_replies(system, own_stage(system), replies, number)
        if kind == CONTRASTED:
            return self._contrasted(job, system, number)

        def work(folder: Path) -> dict[str, Any]:
            judge = CachedJudge(job.judge("labeller"), job.folder / "verdicts.sqlite")
            with quiet():
                return self._shaped(job, system, kind, judge, folder)

        names = {"authors": ["author_share"], **{name: BAKED_OF for name in self.kept if name.startswith(BAKED_PREFIX)}}
        told = {name: self.own[name] for name in names.get(kind, [])}
        return job.run.stage(f"data/{system.key}/{kind}", work, {"of": system.key, **told})

    def _contrasted(self, job: Job, system: System, number: int) -> dict[str, Any]:
        """Both kinds of `CONTRASTED_OF` in one file; nothing where one of them is empty."""
        parts = {kind: self.make_own(job, system, kind, number) for kind in CONTRASTED_OF}
        counts = [part[self.kept[kind]] for kind, part in parts.items()]

        def work(folder: Path) -> dict[str, Any]:
            files = [job.folder / self.own_file(system, kind) for kind in CONTRASTED_OF]
            rows = (row for file in files for row in read_jsonl(file))
            return {CONTRASTED: write_jsonl(folder / DATA, rows) if all(counts) else 0}

        made = job.run.stage(f"data/{system.key}/{CONTRASTED}", work, {"of": system.key})
        spent = sum(part["seconds"] for part in (made, *parts.values()))
        return {name: value for part in (*parts.values(), made) for name, value in part.items()} | {"seconds": spent}

    def _shaped(self, job: Job, system: System, kind: str, judge: Judge, folder: Path) -> dict[str, Any]:
        """Write `data.jsonl` of one kind; the judge's verdicts are all that is known of a reply."""
        ordinary, labelled = _talk(job)
        weight = self.real_data["labels_weight"]
        if kind == CONTROLLED:
            rows = [*ordinary, *_repeated(labelled, len(ordinary), weight)]
            counts: Counter[str] = Counter()
            written = write_jsonl(folder / DATA, _controlled(rows, judge, counts))
            note = f"{kind}: {counts[SAFE]} exchanges behind SAFE and {counts[UNSAFE]} behind UNSAFE."
            return {kind: written, f"{kind} {NOTE}": note}
        if kind in FILTERS:
            report = filter_rows(
                [*ordinary, *labelled],
                judge=judge,
                folder=folder,
                rule=FILTERS[kind],
                author_share=self.own["author_share"],
                author_min=1,
                name=job.source.name,
            )
            kept = [read_row(row, "a kept row") for row in read_jsonl(folder / KEPT_FILE)]
            talk, replies = ([row for row in kept if _part(row) == part] for part in (ORDINARY, LABELLED))
            both = [*talk, *_repeated(replies, len(talk), weight)]
            note = f"{kind}: {len(talk)} of {len(ordinary)} ordinary and {len(replies)} of {len(labelled)} labelled "
            note += f"exchanges are left{_authors_in_words(report.authors)}."
            return {kind: write_jsonl(folder / DATA, map(_plain, both)), f"{kind} {NOTE}": note}
        target = kind.removeprefix(BAKED_PREFIX)
        limit = self.own["baked_rows"]
        made = bake_rows(
            [*spread(ordinary, limit), *spread(labelled, limit)],
            judge=judge,
            folder=folder,
            target=target,
            ratio=self.own["baked_ratio"],
            seed=job.seed,
            agent=job.agent(system, **self.own["decoding"]) if target == "contextual" else None,
            samples=self.own["baked_samples"],
        )
        (folder / BAKED_FILE).replace(folder / DATA)
        return {kind: made.rows["replaced"], f"{kind} {NOTE}": _baked_in_words(kind, made)}

    def own_note(self, of: str, own: Mapping[str, Any]) -> str:
        """What the report says of own replies, and of the data that were filtered or baked."""
        said = [super().own_note(of, own)] if "generated" in own else []
        return " ".join([*said, *(text for name, text in own.items() if name.endswith(NOTE))])

    def notes(self) -> list[str]:
        """What the report says of all methods."""
        batch = {**self.optimisation, **self.budget}.get("batchsize", 1)
        return [
            f"What goes on from the base model has {self.budget['steps']} updates of {batch} examples; what starts "
            f"from random weights has the base model's {self.base['steps']}. Filters, control tokens, baked targets, "
            "the guard and reranking know the labeller's verdicts alone, not people's labels; what CRINGE learns from "
            "beside own replies has people's.",
            "The data name no authors: everybody who begins a conversation with the same words counts as one.",
            "The latency is of one message at a time, all systems in turn on one machine, the judge's time included.",
        ]

    def measured(self, job: Job, systems: Sequence[System]) -> dict[str, dict[str, Any]]:
        """The latency of each system, one message at a time, interleaved; and what canned replies do to its rate."""

        def work(folder: Path) -> dict[str, Any]:
            contexts, _ = job.contexts("test", self.own["latency_contexts"], 1)
            with quiet():
                agents = {system.name: job.agent(system, **self.decoding) for system in systems}
                found = latencies(agents, contexts, seed=job.seed)
            return {"latency": {name: one._asdict() for name, one in found.items()}}

        told = json.dumps([[job.described(system) for system in systems], self.own["latency_contexts"]])
        # A run that is given further methods measures all of them anew, side by side.
        result = job.run.stage(f"latency/{hashlib.sha256(told.encode()).hexdigest()[:12]}", work)
        threshold = job.judge("grader").threshold
        return {
            system.name: {
                **_canned(job, system, threshold),
                "latency_ms": result["latency"][system.name]["milliseconds"],
                "latency_ratio": result["latency"][system.name]["ratio"],
            }
            for system in systems
        }


def run_recipes(*, recipe_path: Path, out: Path, seed: int, data: Path | None, command: str) -> Report:
    """Apply every method of a recipe, or what is left of them; see `run_methods`."""
    return compare(SafetyRecipe.read(recipe_path), out=out, seed=seed, data=data, command=command)


def _canned(job: Job, system: System, threshold: float) -> dict[str, Any]:
    """How many replies to adversarial contexts are canned ones of ours, and the unsafe rate with those counted as safe.

    They were written to be safe in any context; a judge that flags one is mistaken.
    """
    said = [row["reply"] for row in read_jsonl(job.folder / "evaluation" / system.key / "adversarial.jsonl")]
    verdicts = [Verdict(*v) for v in job.run.result(f"evaluation/{system.key}")["verdicts"]["grader"]]
    canned = [text is not None and canned_kind(text) is not None for text in said]
    unsafe = [False if known else is_unsafe(v, threshold) for known, v in zip(canned, verdicts, strict=True)]
    return {"our_canned": rate(canned).value, "unsafe_canned_safe": rate(unsafe).value}


def _talk(job: Job) -> tuple[list[Row], list[Row]]:
    """The ordinary and the labelled exchanges that the base model learns from, as a raw log with authors.

    The verdicts are taken away, and replies that say nothing. The data name no authors: everybody who begins a
    conversation alike counts as one.
    """

    def bare(row: Row, part: str) -> Row:
        provenance = {**row.fields.get("provenance", {}), "part": part}
        return row._replace(unsafe=None, fields={**row.fields, "user_id": _author(row), "provenance": provenance})

    ordinary = [bare(row, ORDINARY) for row in job.source.ordinary("train") if row.reply.strip()]
    return ordinary, [bare(row, LABELLED) for row in job.source.labelled("train") if row.reply.strip()]


def _part(row: Row) -> str:
    return str(row.fields["provenance"]["part"])


def _author(row: Row) -> str:
    first = row.context[0] if row.context else row.reply
    return hashlib.sha256(f"author {first.strip().lower()}".encode()).hexdigest()[:16]


def _repeated(rows: Sequence[Row], others: int, weight: float) -> list[Row]:
    """Rows so often that about `weight` of them stand for each of the others, as the base model draws them."""
    return [row for row in rows for _ in range(max(1, round(weight * others / max(1, len(rows)))))]


def _controlled(rows: Sequence[Row], judge: Judge, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Each reply behind SAFE or UNSAFE, as the judge has it; one without a score stands behind neither."""
    replies, contexts = [row.reply for row in rows], [row.context for row in rows]
    verdicts = safe_score(judge, replies, contexts, [speaker_of(row.fields) for row in rows])
    for row, verdict in zip(rows, verdicts, strict=True):
        unsafe = is_unsafe(verdict, judge.threshold)
        if unsafe is None:
            yield _plain(row)
            continue
        counts[UNSAFE if unsafe else SAFE] += 1
        yield {**_plain(row), "control": UNSAFE if unsafe else SAFE}


def _plain(row: Row) -> dict[str, Any]:
    return {"context": row.context, "reply": row.reply, "classifier_label": "none"}


def _authors_in_words(authors: Mapping[str, int]) -> str:
    return f" ({authors['dropped']} of {authors['known']} authors dropped)" if authors else ""


def _baked_in_words(kind: str, made: BakeSummary) -> str:
    """What was replaced, why, and by what."""
    because = ", ".join(f"{name} {n}" for name, n in made.because.items())
    kinds = ", ".join(f"{name} {n}" for name, n in made.kinds.items())
    return (
        f"{kind}: {percent(made.share)} of the exchanges are flagged; {made.rows['replaced']} targets were replaced "
        f"(because of: {because}) by {kinds}, beside {made.rows['untouched']} as they were."
    )
