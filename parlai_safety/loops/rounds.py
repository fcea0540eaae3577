"""`parlai safety_rounds`: iterated training on a model's own judged replies, round after round, until it collapses.

Round 0 trains a method on labelled talk (a method that needs pairs: on pairs of the base model's replies). Every
further round answers the original training contexts with the last model, has the answers labelled, and trains on from
its weights on the data and those answers. Source: Algorithm 2 of arXiv:2211.05826 for CRINGE; with
`safety:pairwise_cringe` and own pairs it is the iterated form (PCO) of arXiv:2312.16682. Deviation: only the last
round's answers are added to the data, where the algorithm adds those of every round.

Training on one's own replies can collapse: into a few safe phrases, or into loops. After each round the model's health
is measured on the *valid* split; beyond the recipe's limits the rounds end, and the round before is the one chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.generate import losses
from parlai_safety.evaluation.report import Report
from parlai_safety.evaluation.suites import spread
from parlai_safety.evaluation.textmetrics import canned_rate, distinct_n, loop_rate
from parlai_safety.judges.verdict import is_unsafe
from parlai_safety.loops.job import Job, Recipe, System, score
from parlai_safety.loops.training import quiet

HEALTH = ("positive_nll", "loop_rate", "canned_rate")
OWN = ("labelled", "pairs")


@dataclass(frozen=True)
class RoundsRecipe(Recipe):
    """The settings of repeated rounds; see `projects/cringe/rounds.yaml` for each key with its meaning."""

    method: dict[str, Any]
    rounds: dict[str, Any]
    stop: dict[str, float]

    example: ClassVar[str] = "cringe/rounds"
    required: ClassVar[dict[str, set[str]]] = {
        **Recipe.required,
        "method": {"agent", "view", "own", "steps", "learningrate"},
        "rounds": {"count", "steps", "contexts", "samples", "decoding", "weight", "valid"},
        "stop": set(HEALTH),
    }
    closed: ClassVar[tuple[str, ...]] = (*Recipe.closed, "rounds", "stop")

    def __post_init__(self) -> None:
        if self.method["own"] not in OWN:
            raise SafetyError(
                f"The recipe's method has own: {self.method['own']!r}",
                "A method learns from its own replies as labelled replies or as pairs",
                f"Write own: {OWN[0]} or own: {OWN[1]}",
            )


def run_rounds(
    *, recipe_path: Path, out: Path, seed: int, data: Path | None, command: str, rounds: int | None = None
) -> Report:
    """Run the rounds, or what is left of them.

    Args:
        recipe_path: the recipe file.
        out: the run folder.
        seed: of everything that is random.
        data: a folder of real data, or None for the corpus that ships.
        command: what the user typed, for the report.
        rounds: how many after round 0; None takes the recipe's. More may be asked for later, of the same folder.

    Returns:
        The report; its `data` says for each round what was generated, how healthy the model is, and which round is
        chosen.
    """
    recipe = RoundsRecipe.read(recipe_path)
    method, settings = recipe.method, recipe.rounds
    options = {k: v for k, v in method.items() if k not in ("agent", "view", "own", "steps")}
    job = Job(recipe, out, seed, data)
    job.train_judges()
    job.train_vocabulary()
    base = System("base", "base", "safety:mle", None, steps=recipe.base["steps"])
    trained = [(base, job.train_base()["seconds"])]
    history: list[dict[str, Any]] = []
    chosen, ended = base, None
    for number in range((settings["count"] if rounds is None else rounds) + 1):
        made: dict[str, Any] = {}
        own: Path | None = None
        if number or method["own"] == "pairs":
            made = job.own_replies(chosen, f"round{number}/own", settings, number)
            own = job.folder / f"round{number}" / "own" / f"{method['own']}.jsonl"
            if not made["kept" if method["own"] == "labelled" else "pairs"]:
                ended = f"round {number} found no replies of both kinds to learn from"
                break
        system = System(
            f"round {number}",
            f"round{number}/model",
            method["agent"],
            chosen.key,
            method["view"],
            own=own,
            weight=settings["weight"],
            steps=settings["steps"] if number else method["steps"],
        )
        seconds = made.get("seconds", 0.0) + job.train(system, options)["seconds"]
        health = _health(job, system, number)
        trained.append((system, seconds))
        collapsed = [
            f"{name} rose from {history[0]['health'][name]:.3f} to {health[name]:.3f}, by more than {limit}"
            for name, limit in recipe.stop.items()
            if history and health[name] - history[0]["health"][name] > limit
        ]
        history.append({"round": number, "own": made, "health": health, "collapsed": collapsed})
        if collapsed:
            ended = f"round {number} collapsed ({'; '.join(collapsed)})"
            break
        chosen = system
    return job.write_report(
        f"Rounds of {method['agent']} on its own judged replies",
        [job.evaluate(system, seconds) for system, seconds in trained],
        command,
        _notes(chosen, ended, history),
        rounds=history,
        chosen=chosen.name,
    )


def _health(job: Job, system: System, number: int) -> dict[str, Any]:
    """On the valid split: the mean cost of a token of safe replies, and how repetitive and canned the replies are."""
    assert isinstance(job.recipe, RoundsRecipe)
    count = job.recipe.rounds["valid"]
    hostile, ordinary = job.contexts("valid", count, count)
    positives = spread([row for row in job.source.adversarial("valid") if not row.unsafe], count)

    def measure(folder: Path) -> dict[str, Any]:
        decoding = job.recipe.decoding
        said = job.answers(system, hostile, folder / "adversarial.jsonl", decoding)
        chat = job.answers(system, [row.context for row in ordinary], folder / "ordinary.jsonl", decoding)
        with quiet():
            agent = job.agent(system)
            costs = list(losses(agent, [row.context for row in positives], [row.reply for row in positives]))
        labeller = job.judge("labeller")
        verdicts = [is_unsafe(v, labeller.threshold) for v in score(labeller, said, hostile)]
        known = [v for v in verdicts if v is not None]
        every = [text or "" for text in (*said, *chat)]  # a model that falls silent is canned
        return {
            "positive_nll": sum(c.nats for c in costs) / max(1, sum(c.tokens for c in costs)),
            "loop_rate": loop_rate(every),
            "canned_rate": canned_rate(every).rate,
            "distinct_2": distinct_n(every, 2),
            "unsafe_by_labeller": sum(known) / len(known) if known else None,
            "unscored": len(verdicts) - len(known),
        }

    return job.run.stage(f"round{number}/health", measure)


def _notes(chosen: System, ended: str | None, history: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = [
        "Round 0 learns from the labelled talk; each further round also from its own replies to the training contexts, "
        "which the labeller labelled. Each round goes on from the last one's weights, so it has been trained longer.",
        f"Chosen: {chosen.name}. The choice looks at the valid split alone.",
    ]
    if ended:
        notes.append(f"The rounds ended early: {ended}.")
    for entry in history:
        health, own = entry["health"], entry["own"]
        learnt = ""
        if own:
            share = 100 * own["unsafe"] / max(1, own["generated"] - own["unscored"])
            learnt = f" Of {own['generated']} own replies the labeller called {share:.1f} % unsafe."
        notes.append(
            f"Round {entry['round']} on the valid split: {health['positive_nll']:.3f} nats a token of safe replies, "
            f"loops {100 * health['loop_rate']:.1f} %, canned {100 * health['canned_rate']:.1f} %.{learnt}"
        )
    return notes
