"""`parlai safety_methods`: every method at one budget, from one base model, on one data set, graded by one judge.

The methods are those that CRINGE was compared with (arXiv:2211.05826) and some of its successors: a recipe lists them,
each an agent of ours that goes on from the base model for the same number of updates, or a way of decoding a model.
What a method needs beside the data is made once and shared: the base model's own replies with their labels, the pairs
of them, an anti-expert, and a judge of unfinished replies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.evaluation.report import Report
from parlai_safety.loops.job import Job, Recipe, System

_KEYS = {"name", "agent", "start", "view", "own", "own_of", "steps", "decode", "options", "reported"}
_DECODE = "decode"


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

    def __post_init__(self) -> None:
        before = ["base"]
        for entry in self.methods:
            name = entry.get("name", entry)
            unknown = sorted(set(entry) - _KEYS)
            missing = sorted({"name", "agent"} - set(entry))
            if unknown or missing:
                raise SafetyError(
                    f"The method {name!r} of the recipe lacks {missing} and has unknown {unknown}",
                    f"A method has a name and an agent, and may have {', '.join(sorted(_KEYS - {'name', 'agent'}))}",
                    "Compare it with projects/cringe/methods.yaml",
                )
            for other in filter(None, (entry.get("start"), entry.get("own_of"), *_systems_in(entry))):
                if other not in before:
                    raise SafetyError(
                        f"The method {name!r} of the recipe builds on {other!r}",
                        "A method can only build on the base model or on one that stands before it",
                        did_you_mean(str(other), before, f"Before it stand: {', '.join(before)}"),
                    )
            if name in before:
                raise SafetyError(
                    f"The recipe has two methods named {name!r}",
                    "The name is the folder of a method's model and its line in the table",
                    "Give each method a name of its own",
                )
            before.append(name)


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
    recipe = MethodsRecipe.read(recipe_path)
    job = Job(recipe, out, seed, data)
    job.train_judges()
    job.train_vocabulary()
    base = System("base", "base", "safety:mle", None, steps=recipe.base["steps"])
    systems = {"base": base}
    seconds = {"base": job.train_base()["seconds"]}
    settings = {key: value for key, value in recipe.budget.items() if key != "steps"}
    made: dict[str, dict[str, Any]] = {}
    for entry in recipe.methods:
        name = entry["name"]
        system = _system(job, recipe, entry, systems, made)
        systems[name] = system
        seconds[name] = 0.0 if system.decodes else job.train(system, settings)["seconds"]
    reported = ["base", *(entry["name"] for entry in recipe.methods if entry.get("reported", True))]
    return job.write_report(
        "Methods at one budget",
        [job.evaluate(systems[name], seconds[name]) for name in reported],
        command,
        _notes(recipe, made),
        own_replies=made,
    )


def _system(
    job: Job,
    recipe: MethodsRecipe,
    entry: Mapping[str, Any],
    systems: Mapping[str, System],
    made: dict[str, dict[str, Any]],
) -> System:
    own: Path | None = None
    if entry.get("own"):
        of = entry.get("own_of", "base")
        stage = f"own/{systems[of].key}"
        made[of] = job.own_replies(systems[of], stage, recipe.own, number=len(made) + 1)
        own = job.folder / stage / f"{entry['own']}.jsonl"
    return System(
        entry["name"],
        _key(entry["name"]),
        entry["agent"],
        systems[entry.get("start", "base")].key,
        entry.get("view", "reply"),
        own=own,
        weight=recipe.own["weight"],
        steps=0 if entry.get(_DECODE) else entry.get("steps", recipe.budget["steps"]),
        options=_options(job, entry.get("options") or {}, systems),
    )


def _options(job: Job, options: Mapping[str, Any], systems: Mapping[str, System]) -> dict[str, Any]:
    """An agent's options with this run's files in place of `<labeller>`, `<prefix judge>` and `<model of NAME>`."""

    def filled(value: Any) -> Any:
        if value == "<labeller>":
            return job.judge_spec("labeller")
        if value == "<prefix judge>":
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


def _notes(recipe: MethodsRecipe, made: Mapping[str, Mapping[str, Any]]) -> list[str]:
    notes = [
        f"Every trained method goes on from the base model for {recipe.budget['steps']} updates of "
        f"{recipe.optimisation.get('batchsize', 1)} examples with one learning rate, unless its name says otherwise. "
        "A way of decoding changes no model; it has the base model's weights, and no perplexity of its own.",
    ]
    notes += [
        f"Own replies of {of}: {own['generated']} to training contexts, {own['unsafe']} unsafe by the labeller, "
        f"{own['unscored']} unscored; {own['kept']} kept as labelled replies, {own['pairs']} as pairs."
        for of, own in made.items()
    ]
    return notes
