"""`parlai safety_methods`: every method at one budget, from one base model, on one data set, graded by one judge.

The methods are those that CRINGE was compared with (arXiv:2211.05826) and some of its successors: a recipe lists them,
each an agent of ours that goes on from the base model for the same number of updates, or a way of decoding a model.
What a method needs beside the data is made once and shared: the base model's own replies with their labels, the pairs
of them, an anti-expert, and a judge of unfinished replies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.evaluation.report import Report
from parlai_safety.loops.job import BASE, BASE_AGENT, Job, Recipe, System
from parlai_safety.loops.known import ALONE, TOXIC, VIEWS, check_number, check_one_of, check_options, decodes

_KEYS = {"name", "agent", "start", "view", "own", "own_of", "steps", "decode", "options", "reported", "decoding"}
_DECODE = "decode"
LABELLER, PREFIX = "<labeller>", "<prefix judge>"
PLACEHOLDERS = (LABELLER, PREFIX, "<model of NAME>")
KEPT = {"labelled": "kept", "pairs": "pairs"}
RESERVED = (BASE, "judges", "vocabulary", "prefix_judge", "own", "evaluation")


@dataclass(frozen=True)
class MethodsRecipe(Recipe):
    """The settings of a comparison; see `projects/cringe/methods.yaml` for each key with its meaning."""

    own: dict[str, Any]
    budget: dict[str, Any]
    methods: list[dict[str, Any]]

    example: ClassVar[str] = "cringe/methods"
    required: ClassVar[dict[str, set[str]]] = {
        **Recipe.required,
        "own": {"contexts", "samples", "decoding", "weight"},
        "budget": {"steps", "learningrate"},
    }
    closed: ClassVar[tuple[str, ...]] = (*Recipe.closed, "own")
    own_counts: ClassVar[tuple[str, ...]] = ("contexts", "samples")
    """Keys of the section of own replies that hold counts."""
    kept: ClassVar[Mapping[str, str]] = KEPT
    """What a method can learn from own replies -> the count of it in the result of their stage."""
    title: ClassVar[str] = "Methods at one budget"

    def job(self, out: Path, seed: int, data: Path | None) -> Job:
        """The job of this recipe."""
        return Job(self, out, seed, data)

    def own_file(self, system: System, kind: str) -> str:
        """Where in the run folder that lies which methods learn from a system's own replies in that form."""
        return f"{own_stage(system)}/{kind}.jsonl"

    def make_own(self, job: Job, system: System, kind: str, number: int) -> dict[str, Any]:
        """Make the `own_file` of a system, perhaps those of other kinds with it; returns the counts of `kept`.

        Args:
            job: whose run it is.
            system: whose replies.
            kind: of `kept`: in which form a method learns from them.
            number: of the round, for the provenance of each row.
        """
        return job.own_replies(system, own_stage(system), self.own, number)

    def own_note(self, of: str, own: Mapping[str, Any]) -> str:
        """What the report says of it."""
        return (
            f"Own replies of {of}: {own['generated']} to training contexts, {own['unsafe']} unsafe by the labeller, "
            f"{own['unscored']} unscored; {own['kept']} kept as labelled replies, {own['pairs']} as pairs."
        )

    def measured(self, job: Job, systems: Sequence[System]) -> dict[str, dict[str, Any]]:
        """What this kind of comparison measures of all systems together; name -> measures for `SystemResult.extra`."""
        return {}

    def notes(self) -> list[str]:
        """What the report says of all methods."""
        batch = {**self.optimisation, **self.budget}.get("batchsize", 1)
        return [
            f"Every trained method goes on from the base model for {self.budget['steps']} updates of {batch} examples "
            "with one learning rate, unless its name says otherwise. "
            "A way of decoding trains nothing and has no perplexity of its own; the time of the models and judges that "
            "it is given is not in its own.",
            "Reranking, FUDGE and PACER are guided by judges from the labeller's half, so they were made to please the "
            "labeller.",
        ]

    def check(self) -> None:
        """As `Recipe.check`, and every method: its name, its agent, its options and what it builds on."""
        super().check()
        check_number(self.budget["steps"], "budget: steps", low=1, whole=True)
        for name in self.own_counts:
            check_number(self.own[name], f"own: {name}", low=1, whole=True)
        check_options(BASE_AGENT, set(self.budget) - {"steps"}, "The section 'budget' of the recipe")
        check_options(BASE_AGENT, self.own["decoding"], "The decoding of own replies")
        before = [BASE]
        keys = set(RESERVED)
        for entry in self.methods if isinstance(self.methods, list) else [self.methods]:
            if not isinstance(entry, dict):
                raise SafetyError(
                    f"The recipe has the method {entry!r}",
                    "A method is a mapping with a name and an agent",
                    'Write for example - {name: CRINGE, agent: "safety:cringe"}',
                )
            name = entry.get("name", entry)
            unknown = sorted(set(entry) - _KEYS)
            missing = sorted({"name", "agent"} - set(entry))
            if unknown or missing:
                raise SafetyError(
                    f"The method {name!r} of the recipe lacks {missing} and has unknown {unknown}",
                    f"A method has a name and an agent, and may have {', '.join(sorted(_KEYS - {'name', 'agent'}))}",
                    "Compare it with projects/cringe/methods.yaml",
                )
            for other in _builds_on(entry):
                if other not in before:
                    raise SafetyError(
                        f"The method {name!r} of the recipe builds on {other!r}",
                        "A method can only build on the base model or on one that stands before it",
                        did_you_mean(str(other), before, f"Before it stand: {', '.join(before)}"),
                    )
            key = _key(str(name))
            if key in keys or not key:
                raise SafetyError(
                    f"The name {name!r} of a method is taken, or has no letters and digits",
                    "By these a method has its folder in the run, beside those of the other methods and of the job",
                    "Give each method a name of its own",
                )
            self._check_method(entry, before)
            keys.add(key)
            before.append(name)

    def _check_method(self, entry: Mapping[str, Any], before: Sequence[str]) -> None:
        name, agent = entry["name"], entry["agent"]
        where = f"The method {name!r} of the recipe"
        options = entry.get("options") or {}
        check_options(agent, options, where)
        for value in options.values():
            if isinstance(value, str) and value.startswith("<") and _named(value) is None:
                check_one_of(value, PLACEHOLDERS, f"{where}: an option", "which file of the run an agent is given")
        decoding = entry.get("decoding") or {}
        check_options(agent, decoding, f"{where}: decoding")
        asked_otherwise = bool(entry.get(_DECODE) and decoding)  # a trained model, and another way to ask it
        if decodes(agent) != bool(entry.get(_DECODE)) and not asked_otherwise:
            raise SafetyError(
                f"{where} has decode: {bool(entry.get(_DECODE))}, with the agent {agent}",
                "An agent either is trained or changes how a trained model speaks",
                f"Write decode: {str(decodes(agent)).lower()}",
            )
        if not entry.get(_DECODE):
            check_one_of(
                entry.get("view", "reply"),
                (*VIEWS, TOXIC, ALONE),
                f"{where}: view",
                "which view of the data it learns from",
            )
            check_number(entry.get("steps", self.budget["steps"]), f"{where}: steps", low=1, whole=True)
        if entry.get("own"):
            check_one_of(entry["own"], tuple(self.kept), f"{where}: own", "as what a method learns from own replies")
        trained = [BASE, *(m["name"] for m in self.methods if m.get("name") in before and not m.get(_DECODE))]
        if entry.get("view") == ALONE and not entry.get("own"):
            raise SafetyError(
                f"{where} has view: {ALONE} and no own replies",
                "That view shows none of the data, so there would be nothing to learn from",
                f"Name own replies beside it (own: {next(iter(self.kept))}), or another view",
            )
        start = entry.get("start", BASE)
        for other in (*([] if start is None and not entry.get(_DECODE) else [start]), *_systems_in(entry)):
            check_one_of(other, tuple(trained), f"{where}: what it builds on", "a model that was trained before")


def run_methods(*, recipe_path: Path, out: Path, seed: int, data: Path | None, command: str) -> Report:
    """Train and measure every method of a recipe, or what is left of them.

    Args:
        recipe_path: the recipe file.
        out: the run folder.
        seed: of everything that is random.
        data: a folder of real data, or None for the corpus that ships.
        command: what the user typed, for the report.

    Returns:
        The report, one system a method.
    """
    return compare(MethodsRecipe.read(recipe_path), out=out, seed=seed, data=data, command=command)


def compare(recipe: MethodsRecipe, *, out: Path, seed: int, data: Path | None, command: str) -> Report:
    """As `run_methods`, of a recipe that was read."""
    job = recipe.job(out, seed, data)
    systems = {BASE: job.base}
    seconds = {BASE: job.prepare()}
    settings = {key: value for key, value in recipe.budget.items() if key != "steps"}
    made: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for entry in recipe.methods:
        name = entry["name"]
        lost = next((other for other in _builds_on(entry) if other in left_out), None)
        if lost is not None:
            left_out[name] = f"it builds on {lost}, which was left out"
            continue
        spent = 0.0
        if entry.get("own"):
            of = entry.get("own_of", BASE)
            own = recipe.make_own(job, systems[of], entry["own"], _round(recipe, of))
            made[of] = {**made.get(of, {}), **own}
            spent = own["seconds"]
            if not own[recipe.kept[entry["own"]]]:
                left_out[name] = f"the labeller found no replies of both kinds among those of {of}"
                continue
        system = _system(job, recipe, entry, systems)
        systems[name] = system
        options = settings if system.start is not None else job.base_options
        seconds[name] = spent + (0.0 if system.decodes else job.train(system, options)["seconds"])
    reported = [BASE, *(m["name"] for m in recipe.methods if m.get("reported", True) and m["name"] in systems)]
    outcome = [f"Left out: {name} ({why})." for name, why in left_out.items()]
    results = [job.evaluate(systems[name], seconds[name]) for name in reported]
    further = recipe.measured(job, [systems[name] for name in reported])
    return job.write_report(
        recipe.title,
        [replace(result, extra={**result.extra, **further.get(result.name, {})}) for result in results],
        command,
        [*recipe.notes(), *(recipe.own_note(of, own) for of, own in made.items()), *outcome],
        own_replies=made,
        outcome=outcome,
    )


def _builds_on(entry: Mapping[str, Any]) -> list[str]:
    return [other for other in (entry.get("start"), entry.get("own_of"), *_systems_in(entry)) if other]


def own_stage(system: System) -> str:
    """The folder of a system's own replies in the run."""
    return f"own/{system.key}"


def _round(recipe: MethodsRecipe, of: str) -> int:
    """Which round of own replies those of a system are: 0 for a model that has learnt from none."""
    entry = next((m for m in recipe.methods if m["name"] == of), None)
    if entry is None:
        return 0
    return 1 + (_round(recipe, entry.get("own_of", BASE)) if entry.get("own") else 0)


def _system(job: Job, recipe: MethodsRecipe, entry: Mapping[str, Any], systems: Mapping[str, System]) -> System:
    own: Path | None = None
    if entry.get("own"):
        own = job.folder / recipe.own_file(systems[entry.get("own_of", BASE)], entry["own"])
    start = entry.get("start", BASE)
    steps = recipe.base["steps"] if start is None else recipe.budget["steps"]
    return System(
        entry["name"],
        _key(entry["name"]),
        entry["agent"],
        None if start is None else systems[start].key,
        entry.get("view", "reply"),
        own=own,
        weight=recipe.own["weight"],
        steps=0 if entry.get(_DECODE) else entry.get("steps", steps),
        options=_options(job, entry.get("options") or {}, systems),
        decoding=entry.get("decoding"),
    )


def _options(job: Job, options: Mapping[str, Any], systems: Mapping[str, System]) -> dict[str, Any]:
    """An agent's options with this run's files in place of `<labeller>`, `<prefix judge>` and `<model of NAME>`."""

    def filled(value: Any) -> Any:
        if value == LABELLER:
            return job.judge_spec("labeller")
        if value == PREFIX:
            return job.train_prefix_judge()
        named = _named(value)
        return value if named is None else str(job.folder / systems[named].key / "model")

    return {key: filled(value) for key, value in options.items()}


def _systems_in(entry: Mapping[str, Any]) -> list[str]:
    return [named for named in map(_named, (entry.get("options") or {}).values()) if named is not None]


def _named(value: Any) -> str | None:
    """NAME of the placeholder `<model of NAME>`."""
    start, end = "<model of ", ">"
    if isinstance(value, str) and value.startswith(start) and value.endswith(end):
        return value[len(start) : -len(end)]
    return None


def _key(name: str) -> str:
    """A name as a folder: letters and digits, the rest as one underscore."""
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
