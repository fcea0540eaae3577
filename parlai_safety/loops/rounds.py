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
from parlai_safety.loops.known import OWN, VIEWS, check_number, check_one_of, check_options, decodes
from parlai_safety.loops.training import quiet

HEALTH = ("positive_nll", "loop_rate", "canned_rate")


_OURS = {"agent", "view", "own", "steps"}


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

    def check(self) -> None:
        """As `Recipe.check`, and the sections of the method, of the rounds and of their end."""
        super().check()
        agent = self.method["agent"]
        if decodes(agent):
            raise SafetyError(
                f"The method of the recipe is {agent!r}",
                "It is a way of decoding another model, and rounds train a model again and again",
                "Name an agent that is trained, such as safety:cringe",
            )
        check_options(agent, set(self.method) - _OURS, "The section 'method' of the recipe")
        check_options(agent, self.rounds["decoding"], "The rounds' decoding")
        check_one_of(self.method["view"], VIEWS, "method: view", "which view of the data a method learns from")
        check_one_of(self.method["own"], OWN, "method: own", "as what a method learns from its own replies")
        check_number(self.method["steps"], "method: steps", low=1, whole=True)
        check_number(self.rounds["count"], "rounds: count", low=0, whole=True)
        for name in ("steps", "contexts", "samples", "valid"):
            check_number(self.rounds[name], f"rounds: {name}", low=1, whole=True)
        for name in HEALTH:
            check_number(self.stop[name], f"stop: {name}", low=0)


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
    count = settings["count"] if rounds is None else rounds
    check_number(count, "--rounds", low=0, whole=True)
    options = {k: v for k, v in method.items() if k not in _OURS}
    job = Job(recipe, out, seed, data)
    trained = [(job.base, job.prepare())]
    history: list[dict[str, Any]] = []
    chosen, ended = job.base, None
    for number in range(count + 1):
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
            if history and not health[name] - history[0]["health"][name] <= limit  # not a number is no health either
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
        outcome=[f"Chosen: {chosen.name}.", *([f"The rounds ended early: {ended}."] if ended else [])],
    )


def _health(job: Job, system: System, number: int) -> dict[str, Any]:
    """On the valid split: the mean cost of a token of safe replies, and how repetitive and canned the replies are."""
    assert isinstance(job.recipe, RoundsRecipe)
    count = job.recipe.rounds["valid"]

    def measure(folder: Path) -> dict[str, Any]:
        hostile, ordinary = job.contexts("valid", count, count)
        positives = spread([row for row in job.source.adversarial("valid") if not row.unsafe], count)
        decoding = job.recipe.decoding
        said = job.answers(system, hostile, folder / "adversarial.jsonl", decoding)
        chat = job.answers(system, [row.context for row in ordinary], folder / "ordinary.jsonl", decoding)
        with quiet():
            agent = job.agent(system)
            costs = list(losses(agent, [row.context for row in positives], [row.reply for row in positives]))
        if not costs:
            raise SafetyError(
                f"No cost of the {len(positives)} safe replies of the valid split could be measured",
                "Whether a model collapses is seen by how likely it finds them",
                "Name an agent that reports a perplexity, and data whose valid split has safe replies",
            )
        labeller = job.judge("labeller")
        verdicts = [is_unsafe(v, labeller.threshold) for v in score(labeller, said, hostile)]
        known = [v for v in verdicts if v is not None]
        every = [text or "" for text in (*said, *chat)]  # a model that falls silent is canned
        return {
            "positive_nll": sum(c.nats for c in costs) / sum(c.tokens for c in costs),
            "loop_rate": loop_rate(every),
            "canned_rate": canned_rate(every).rate,
            "distinct_2": distinct_n(every, 2),
            "unsafe_by_labeller": sum(known) / len(known) if known else None,
            "unscored": len(verdicts) - len(known),
        }

    return job.run.stage(f"round{number}/health", measure, {**job.described(system), "valid": count})


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
