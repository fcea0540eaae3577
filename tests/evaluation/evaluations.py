"""Synthetic evaluations for the tests of the report: everything that can be there, and a hole in each place."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace

from parlai_safety.evaluation.results import (
    COMPLETE,
    TEXTS,
    Evaluation,
    JudgeEntry,
    Measure,
    Record,
    SuiteResult,
    Survival,
    write_evaluation,
)
from parlai_safety.evaluation.statistics import rate

LINEAR, WORDS = "linear:judges/grader.npz", "wordlist"
HOSTILE = "</details><script>alert('turnip')</script>"
CATEGORIES = ("insult bait", "loaded question | with a bar", "quiet remark")
GROUPS = ("teal people", "umber people", "violet people", "ochre people")
SUITES = ("adversarial", "ordinary", "prompts", "identity", "multiturn")


def card(fingerprint):
    """A card in the form of `judges.card`."""
    quality = {
        "n": 1210, "unscored": 10, "unsafe": 400, "safe": 800, "ordinary": 500, "auc": 0.953, "sensitivity": 0.88,
        "specificity": 0.91, "ordinary_false_positive_rate": 0.012, "threshold": 0.5, "auc_interval": [0.94, 0.965],
        "sensitivity_interval": [0.83, 0.92], "specificity_interval": [0.88, 0.94],
        "ordinary_false_positive_interval": [0.005, 0.026],
    }  # fmt: skip
    none = {key: None for key in quality if key.endswith("_interval")}
    bot = {**quality, "n": 300, "unsafe": 120, "safe": 180, "ordinary": 0, "ordinary_false_positive_rate": None}
    few = {**quality, **none, "n": 40, "unsafe": 0, "safe": 40, "sensitivity": None, "auc": None}
    at = {"threshold": 0.71, "sensitivity": 0.8, "specificity": 0.95, "unsafe": 400, "safe": 800, "ordinary": 500}
    return {
        "format": "parlai_safety judge card",
        "version": 1,
        "judge": LINEAR,
        "fingerprint": fingerprint,
        "threshold": 0.5,
        "trained_on": {"half": "A", "by_source": {"adversarial": {"safe": 300, "unsafe": 200}}},
        "measured_on": {"name": "the shipped corpus, half B", "files": {"talk.jsonl": "d" * 64}, "n": 1210},
        "unscored": 10,
        "quality": quality,
        "quality_labelled_bot_turns": bot,
        "quality_by_speaker": {"bot": bot, "human": few},
        "quality_by_turn": {"0": few, "4+": quality},
        "quality_by_group": {"teal people": {**few, "axis": "colour"}},
        "group_gaps": {"kind": {"highest": "teal people", "lowest": "umber people", "difference": 0.2}, "rude": None},
        "calibration": {"n": 1200, "bins": [{"mean_p_unsafe": 0.1, "share_unsafe": 0.2, "n": 1200}], "brier": 0.08},
        "thresholds": {"1 %": at, "5 %": None},
        "warnings": ["Made-up warning: 2 % of ordinary talk is flagged."],
    }


def _rate(records, at, spec, threshold, *, corrected=False):
    outcomes = [None if r.p_unsafe[at] is None else r.p_unsafe[at] >= threshold for r in records]
    found = rate(outcomes)
    detail = {"interval": "Wilson, effective sample size by conversations"}
    if corrected and found.value is not None:
        detail["corrected"] = {"value": 0.9 * found.value, "low": 0.7 * found.value, "high": 1.2 * found.value}
    low, high = found.interval or (None, None)
    return Measure("unsafe", found.value, low, high, found.n, found.unscored, spec, detail)


def _suite(name, records, measures, kind="replies", samples=1, survival=()):
    parts = {}
    for by in ("category", "group"):
        labels = dict.fromkeys(getattr(r, by) for r in records if getattr(r, by))
        parts[by] = {
            label: [
                _rate([r for r in records if getattr(r, by) == label], 0, LINEAR, 0.5),
                _rate([r for r in records if getattr(r, by) == label], 1, WORDS, 0.5),
                Measure("evasive", 0.2, 0.1, 0.3, n=10),
            ]
            for label in labels
        }
    return SuiteResult(
        version=2,
        kind=kind,
        title=f"{name.capitalize()} contexts",
        about=f"Made up for a test of {name}.",
        sha256=hashlib.sha256(name.encode()).hexdigest(),
        items=len({r.id for r in records}),
        samples=samples,
        measures=[
            _rate(records, 0, LINEAR, 0.5, corrected=name == "adversarial"),
            _rate(records, 1, WORDS, 0.5),
            *measures,
        ],
        by_category=parts["category"],
        by_group=parts["group"],
        survival=survival,
        records=records,
    )


def evaluation(name="base", *, unsafe=0.3, seed=1, n=60, dull=0.1, status=COMPLETE):
    """An evaluation of five suites by two judges; the second judge has no card and leaves some replies unscored.

    Args:
        name: of the system.
        unsafe: about the share of unsafe replies.
        seed: of the made-up scores.
        n: contexts a suite.
        dull: the evasive share; perplexity and coherence go with it.
        status: of the evaluation.
    """
    dice = random.Random(seed)

    def record(suite, place, turn=1, sample=0, category=None, group=None):
        p = dice.uniform(0.5, 1) if dice.random() < unsafe else dice.uniform(0, 0.49)
        first = None if place % 31 == 7 else round(p, 3)
        second = None if place % 11 == 3 else round(min(1.0, max(0.0, p + dice.uniform(-0.3, 0.3))), 3)
        reasons = [None if first is not None else "timed out", None if second is not None else "not finite"]
        return Record(
            f"{suite}-{place:03}", sample, turn, f"{suite}-{place // 2}", category, group, [first, second], reasons,
            None if first is None else dull, None if place % 5 == 0 else 0.7,
        )  # fmt: skip

    at = "bootstrap over conversations"
    beside = [
        Measure("evasive", dull, 0.8 * dull, 1.3 * dull, n=n, unscored=2, detail={"interval": at}),
        Measure("canned", dull / 2, n=n),
        Measure("coherence", 0.8 - dull, 0.75 - dull, 0.85 - dull, n=n, unscored=12),
        Measure("distinct_2", 0.41, n=n),
        Measure("length", 11.4, 10.9, 12.0, n=n),
        Measure("copied", None),
    ]
    fluent = [
        *beside,
        Measure("perplexity", 18 + 40 * dull, 17 + 38 * dull, 19 + 42 * dull, n=n),
        Measure("f1", None, unscored=n),
    ]
    adversarial = [record("adversarial", i, category=CATEGORIES[i % 3]) for i in range(n)]
    # The last group is never scored.
    identity = [record("identity", i, group=GROUPS[i % 4]) for i in range(n)]
    identity = [replace(r, p_unsafe=[None, None]) if r.group == GROUPS[3] else r for r in identity]
    talks = [record("multiturn", i, turn=turn) for i in range(n // 6) for turn in range(1, 8)]
    left = [(1 - unsafe / 4) ** turn for turn in range(1, 8)]
    curve = Survival(LINEAR, list(range(1, 8)), left, [0.8 * s for s in left], [min(1, 1.15 * s) for s in left], n // 6)
    prompts = [
        Measure("expected_maximum", 0.2 + unsafe, 0.15 + unsafe, 0.25 + unsafe, n=n // 3, judge=LINEAR),
        Measure("toxicity_probability", None, unscored=n // 3, judge=LINEAR),
    ]
    ends = [
        Measure("failed_by_end", 1 - left[-1], 0.8 * (1 - left[-1]), min(1.0, 1.2 - left[-1]), n=n // 6, judge=LINEAR),
        Measure("recovery", None, judge=LINEAR),
    ]
    asked = [record("prompts", i, sample=sample) for i in range(n // 3) for sample in range(3)]
    suites = {
        "adversarial": _suite("adversarial", adversarial, beside),
        "ordinary": _suite("ordinary", [record("ordinary", i) for i in range(n)], fluent),
        "prompts": _suite("prompts", asked, prompts, "continuations", 3),
        "identity": _suite("identity", identity, []),
        "multiturn": _suite("multiturn", talks, ends, "conversations", survival=[curve]),
    }
    return Evaluation(
        name=name,
        system={"model": "safety:transformer", "model_file": f"models/{name}", "sha256": "a" * 64, "overridden": {}},
        status=status,
        seed=seed,
        command=f"parlai safety_eval -mf models/{seed} --suite {','.join(SUITES)} --judge {LINEAR},{WORDS}",
        versions={"parlai_safety": "0.1", "torch": "2.13"},
        hardware="2 CPU cores, no GPU",
        judges=[JudgeEntry(LINEAR, "1" * 64, 0.5, card("1" * 64)), JudgeEntry(WORDS, "2" * 64, 0.5, None)],
        agreement=[
            {"a": LINEAR, "b": WORDS, "suite": "adversarial", "n": 53, "unscored": 7, "spearman": 0.812, "kappa": 0.64,
             "alpha": 0.633},
            {"a": LINEAR, "b": WORDS, "suite": "identity", "n": 0, "unscored": 60, "spearman": None, "kappa": None,
             "alpha": None},
        ],
        detectors={
            "evasive": {
                "about": "shipped evasive replies", "threshold": 0.5,
                "auc": {"value": 0.97, "low": 0.94, "high": 0.99, "positives": 100, "n": 200},
                "sensitivity": {"on_hard_ones": {"value": 0.9, "low": None, "high": None, "n": 40},
                                "on_easy_ones": {"value": None, "low": None, "high": None, "n": 0}},
            },
            "coherence": None,
        },
        settings={"batch_size": 16, "partner": None},
        suites=suites,
    )  # fmt: skip


def write_run(folder, found, *, texts=True):
    """A run folder: eval.json, and the texts unless they are not wanted."""
    write_evaluation(found, folder / "eval.json")
    for name, suite in found.suites.items() if texts else ():
        path = folder / name / TEXTS
        path.parent.mkdir(parents=True)
        rows = [
            {
                "id": r.id,
                "sample": r.sample,
                "turn": r.turn,
                "context": ["hello", f"what of hat {r.id}?"] if r.turn == 1 else ["hello", f"as {found.name} said"],
                "reply": None if r.p_unsafe[0] is None else f"{found.name} says {HOSTILE} to {r.id}",
            }
            for r in suite.records
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def three_runs(root):
    """Run folders of a plain system, of a safer and duller one, and of a failed one without texts."""
    failed = "300 of 600 replies (50 %) of the suite 'ordinary' are unscored by wordlist (most often: timed out)."
    return [
        write_run(root / "base", evaluation("base", unsafe=0.35, seed=1)),
        write_run(root / "cringe", evaluation("CRINGE $a$ <b>", unsafe=0.08, seed=2, dull=0.3)),
        write_run(root / "broken", evaluation("broken", unsafe=0.2, seed=3, dull=0.2, status=failed), texts=False),
    ]
