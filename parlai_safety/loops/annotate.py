"""Scores of a judge for every message of a task, written as rows that `-t safety:file` reads back.

Every label is judged in its context and as its speaker's, and so is the last turn of that context, in its own context
and as the other speaker's. With `--label pos_neg` sure scores become pseudo labels of rows that have none: the
semi-supervised step of Xu et al. (2020, arXiv:2010.07079, after Khatri et al. 2018), from which a second classifier is
trained with `-t safety:file:classifier`. The cuts of sure and unsure are ours: the digest of the paper names none.

Beside FILE.jsonl lies the folder FILE.jsonl.run with the settings and, in `scores/`, a journal of the scored rows. A
killed job goes on from its last whole batch, and ends in the same bytes as one that was never stopped. Labels and
formats are made from the journal, so that other cuts need no second scoring.

Left out: further labels of a message beside its first, candidates, images, and messages without a label.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

from parlai.core.opt import Opt
from parlai.core.worlds import World

from parlai_safety.errors import SafetyError
from parlai_safety.files import completed, read_jsonl, write_json, write_jsonl
from parlai_safety.judges.verdict import Judge, Speaker, Verdict, safe_score
from parlai_safety.loops.reading import split_named, worlds
from parlai_safety.message import FIELDS, join_context
from parlai_safety.mutators.judged import other, turns_of
from parlai_safety.options import option
from parlai_safety.runs import Journal, Run, alone, progress
from parlai_safety.statistics import Rate, clustered_rate
from parlai_safety.tasks.common import SAFE_CLASS, START, UNSAFE_CLASS

CLASSES = {SAFE_CLASS: "pos", UNSAFE_CLASS: "neg"}
JOURNAL = "rows.jsonl"
SCORES = {"labels": ("toxicity", "unscored"), "last turns": ("context_toxicity", "context_unscored")}
"""What is judged: the field of its score, and the key in `provenance["toxicity"]` of the reason why there is none."""
KEPT = tuple(name for name in FIELDS if name not in ("is_ltr", "speaker", "toxicity", "context_toxicity"))
"""Fields of ours that go from a message into its row as they are."""


@dataclass(frozen=True)
class AnnotateOptions:
    """What is made of the scores."""

    label: str = option(
        "none",
        "pos_neg: rows without a verdict get a pseudo label where the judge is sure; none: verdicts stay as they were.",
        choices=("none", "pos_neg"),
    )
    low: float = option(0.1, "A pseudo label is pos where P(unsafe) is at most this.", low=0.0, high=1.0)
    high: float = option(0.9, "A pseudo label is neg where P(unsafe) is at least this.", low=0.0, high=1.0)
    unsure: str = option(
        "none",
        "With pos_neg, rows between the two and unscored ones stay without a verdict (none) or are left out (drop).",
        choices=("none", "drop"),
    )
    format: str = option(
        "jsonl",
        "conversations: ParlAI's Conversations format too, beside the rows, in FILE.conversations.jsonl.",
        choices=("jsonl", "conversations"),
    )


def annotate(
    opt: Opt, judge: Judge, out: Path, *, options: AnnotateOptions, settings: dict[str, Any]
) -> dict[str, Any]:
    """Score the messages of a task and write them as rows.

    Args:
        opt: with `task` (several joined by commas), `datatype`, `batchsize` (rows scored at once) and the options of
            these tasks, mutators included.
        judge: who scores.
        out: the file; a run that was begun for it is continued.
        options: what is made of the scores.
        settings: what the rows depend on beside task, split and judge, such as the options that the user typed.

    Returns:
        A summary of JSON values: rows read and written, the share of unsafe labels and of unsafe last turns with a
        95 % interval over conversations, and what was unscored, by reason.

    Raises:
        SafetyError: the file was made with other settings or is not of this job, the task gives other rows than when
            the run began or none at all, or the cuts of the labels cross.
    """
    if options.low > options.high:
        raise SafetyError(
            f"--low got {options.low} and --high got {options.high}",
            "A score of at most the first is sure to be safe, one of at least the second unsafe, and not both",
            "Give a --low that is no greater than --high",
        )
    folder = out.with_name(f"{out.name}.run")
    if out.exists() and not (folder / "run.json").is_file():
        raise SafetyError(
            f"There is a file {str(out)!r} already, and no run of this job beside it",
            "The job overwrites nothing that it did not make",
            "Give another --out, or move that file away",
        )
    with alone(folder):
        run = Run(
            folder,
            {
                "task": str(opt["task"]),
                "datatype": split_named(opt),
                "batchsize": int(opt["batchsize"]),
                "judge": judge.spec,
                "fingerprint": judge.fingerprint,
                "threshold": judge.threshold,
                **settings,
            },
        )
        counts = run.stage("scores", lambda stage: _score(opt, judge, stage))
        journal = folder / "scores" / JOURNAL
        kinds: Counter[str] = Counter()
        written = write_jsonl(out, _labelled(read_jsonl(journal), judge, options, kinds))
        summary = {
            **summary_of(read_jsonl(journal), judge.threshold),
            "messages without a label": counts["without a label"],
            "rows written": written,
        }
        if options.label == "pos_neg":
            summary["pseudo labels"] = {kind: kinds.get(kind, 0) for kind in ("pos", "neg", "unsure")}
        if options.format == "conversations":
            about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            summary["conversations"] = write_conversations(out, about)
        write_json(folder / "summary.json", summary)
    return summary


def messages(world: World) -> Iterator[tuple[list[str], Mapping[str, Any]]]:
    """Each message of a task, after the turns of its conversation before it."""
    before: list[str] = []
    while not world.epoch_done():
        world.parley()
        act = world.get_acts()[0]
        label = _label(act)
        yield list(before), act
        # The name of a class was not said.
        said = [*turns_of(act), *([label] if label and label not in CLASSES else ())]
        before = [] if act.get("episode_done") else [*before, *said]


def row_of(before: list[str], act: Mapping[str, Any]) -> dict[str, Any] | None:
    """A message as a row of `-t safety:file`, without scores; None where it has no label.

    Where the label is a class name (`__ok__`, `__notok__`), the reply is the last line of the text, and the class its
    verdict. Who says the reply is the message's `speaker`, or ParlAI's `speaker_to_eval`, or the bot.

    Args:
        before: the turns before this message.
        act: the message.
    """
    context, reply = [*before, *turns_of(act)], _label(act)
    fields = {name: act[name] for name in KEPT if name in act}
    if reply in CLASSES:
        fields["classifier_label"] = CLASSES[reply]
        reply = context.pop() if context else None
    if not reply or not reply.strip():
        return None
    speaker = act.get("speaker") or act.get("speaker_to_eval")
    return {
        "context": context,
        "reply": reply,
        **fields,
        "speaker": speaker if speaker in ("human", "bot") else "bot",
        "provenance": dict(act.get("provenance") or {}),
    }


def summary_of(rows: Iterator[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """Shares of unsafe labels and last turns among scored rows, and reasons of those without a score.

    Args:
        rows: of a journal.
        threshold: of the judge.
    """
    found: dict[str, list[bool | None]] = {kind: [] for kind in SCORES}
    conversations: dict[str, list[str]] = {kind: [] for kind in SCORES}
    reasons: Counter[str] = Counter()
    count = 0
    for row in rows:
        count += 1
        told = row["provenance"]["toxicity"]
        where = row["context"][0] if row["context"] else row["reply"]
        for kind, (name, reason) in SCORES.items():
            if name in row or reason in told:
                score = row.get(name)
                found[kind].append(None if score is None else score >= threshold)
                conversations[kind].append(where)
                reasons.update([told[reason]] if reason in told else [])
    rates = {kind: _rate(clustered_rate(found[kind], conversations[kind])) for kind in found}
    return {"rows": count, **rates, "unscored": dict(sorted(reasons.items()))}


def write_conversations(out: Path, settings: Mapping[str, Any]) -> str:
    """Write the rows of a file once more in ParlAI's Conversations format, with its metadata beside it.

    Rows that continue one another are one conversation. The turns before a reply are one act, and the reply, with its
    fields, is the next: `-t jsonfile` reads them as text and label.

    Args:
        out: a file of rows.
        settings: kept as the options in the metadata.

    Returns:
        The name of the file.
    """
    path = out.with_name(f"{out.name.removesuffix('.jsonl')}.conversations.jsonl")
    metadata = path.with_suffix(".metadata")
    with completed(path) as stream:
        for talk in _talks(read_jsonl(out)):
            line = {"dialog": talk, "context": [], "metadata_path": str(metadata)}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    about = {"date": "", "opt": dict(settings), "self_chat": False, "speakers": ["human", "bot"], "version": "0.1"}
    write_json(metadata, about)
    return path.name


def _talks(rows: Iterator[dict[str, Any]]) -> Iterator[list[list[dict[str, Any]]]]:
    """Rows as conversations, each a list of pairs of acts."""
    talk: list[list[dict[str, Any]]] = []
    said: list[str] = []
    for row in rows:
        goes_on = bool(talk) and row["context"][: len(said)] == said and len(row["context"]) > len(said)
        if talk and not goes_on:
            yield talk
        if not goes_on:
            talk, said = [], []
        new = row["context"][len(said) :]
        score = {"toxicity": row["context_toxicity"]} if "context_toxicity" in row else {}
        asked = {"id": other(row["speaker"]), "text": join_context(new) or START, **score}
        fields = {name: value for name, value in row.items() if name not in ("context", "reply", "context_toxicity")}
        talk.append([asked, {"id": row["speaker"], "text": row["reply"], **fields}])
        said = [*row["context"], row["reply"]]
    if talk:
        yield talk


def _score(opt: Opt, judge: Judge, folder: Path) -> dict[str, Any]:
    """Fill the journal of a stage; what is there already is compared with the task, and not scored again."""
    size, skipped, read, tasks = int(opt["batchsize"]), 0, 0, worlds(opt)
    with closing(Journal(folder / JOURNAL)) as journal:
        if len(journal.rows) % size:  # a batch is scored as a whole, or its scores could differ in the last digit
            journal.rewrite(journal.rows[: -(len(journal.rows) % size)])
        whole = len(journal.rows)

        def rows() -> Iterator[dict[str, Any]]:
            nonlocal skipped, read
            for before, act in chain.from_iterable(map(messages, tasks)):
                row = row_of(before, act)
                if row is None:
                    skipped += 1
                    continue
                read += 1
                if read <= whole:
                    _check_same(row, journal.rows[read - 1], read)
                    continue
                yield row

        left = rows()
        total = sum(world.num_examples() or 0 for world in tasks)
        with progress("scoring", total, whole) as step:
            while batch := list(islice(left, size)):
                journal.append(_scored(batch, judge))
                step(len(batch))
        if len(journal.rows) != read:
            raise _changed(f"it has {read} rows now, and the run had scored {len(journal.rows)}")
    if not read:
        raise SafetyError(
            f"-t {opt['task']} gave no message with a label",
            "What is scored are labels, in the context of their message",
            "Check the task and -dt; parlai display_data shows its messages",
        )
    return {"rows": read, "without a label": skipped}


def _scored(rows: list[dict[str, Any]], judge: Judge) -> list[dict[str, Any]]:
    """The rows with the scores of their replies and of the last turns before them."""
    asked = [index for index, row in enumerate(rows) if row["context"]]
    speakers = [cast(Speaker, row["speaker"]) for row in rows]
    verdicts = safe_score(
        judge,
        [row["reply"] for row in rows] + [rows[index]["context"][-1] for index in asked],
        [row["context"] for row in rows] + [rows[index]["context"][:-1] for index in asked],
        speakers + [other(speakers[index]) for index in asked],
    )
    turns = dict(zip(asked, verdicts[len(rows) :], strict=True))
    return [_with_scores(row, verdicts[index], turns.get(index), judge) for index, row in enumerate(rows)]


def _with_scores(row: dict[str, Any], reply: Verdict, turn: Verdict | None, judge: Judge) -> dict[str, Any]:
    told: dict[str, Any] = {"judge": judge.spec, "fingerprint": judge.fingerprint, "threshold": judge.threshold}
    scores: dict[str, float] = {}
    for verdict, (name, reason) in zip((reply, turn), SCORES.values(), strict=True):
        if verdict is not None and verdict.p_unsafe is not None:
            scores[name] = verdict.p_unsafe
        elif verdict is not None:
            told[reason] = verdict.reason
    return {**row, **scores, "provenance": {**row["provenance"], "toxicity": told}}


def _labelled(
    rows: Iterator[dict[str, Any]], judge: Judge, options: AnnotateOptions, kinds: Counter[str]
) -> Iterator[dict[str, Any]]:
    """The rows with pseudo labels, where these are wanted; how many of which kind there are is counted."""
    about = {"pseudo": True, "judge": judge.spec, "fingerprint": judge.fingerprint}
    for row in rows:
        if options.label == "none" or row.get("classifier_label", "none") != "none":
            yield row
            continue
        score = row.get("toxicity")
        if score is None or options.low < score < options.high:
            kind = "unsure"
        else:
            kind = "neg" if score >= options.high else "pos"
        kinds[kind] += 1
        if kind != "unsure":
            pseudo = {**about, "low": options.low, "high": options.high}
            row = {**row, "classifier_label": kind, "provenance": {**row["provenance"], "classifier_label": pseudo}}
        if kind != "unsure" or options.unsure == "none":
            yield row


def _rate(found: Rate) -> dict[str, Any]:
    interval = None if found.interval is None else list(found.interval)
    return {"n": found.n, "unsafe": found.positives, "unscored": found.unscored, "share": found.value, "95%": interval}


def _label(act: Mapping[str, Any]) -> str | None:
    return next(iter(act.get("labels") or act.get("eval_labels") or ()), None)


def _check_same(row: dict[str, Any], before: dict[str, Any], number: int) -> None:
    if [*row["context"], row["reply"]] != [*before["context"], before["reply"]]:
        raise _changed(f"its row {number} is another one now")


def _changed(what: str) -> SafetyError:
    return SafetyError(
        f"The task is not the one with which this run began: {what}",
        "A run goes on where it stopped, and rows of two tasks, or of a mutator that draws anew, must not be mixed",
        "Give another --out, or delete the run's folder",
    )
