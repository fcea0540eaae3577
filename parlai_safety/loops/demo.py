"""The main job: a base chat model, CRINGE, one more CRINGE round on its own judged replies, and an honest report.

Two judges are trained on disjoint halves of the labelled talk. One labels the model's own replies for the iteration;
the other labels nothing and grades all three systems. Source of the method: arXiv:2211.05826, Algorithm 2. Further
rounds are `parlai safety_rounds`, the other methods of the paper `parlai safety_methods`.

The settings come from a recipe file (YAML); the run folder holds every model, every reply and the report, and a run
that was interrupted goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from parlai_safety.evaluation.report import Report
from parlai_safety.loops.job import BASE, BASE_AGENT, Job, Recipe, System
from parlai_safety.loops.known import check_number, check_options


@dataclass(frozen=True)
class DemoRecipe(Recipe):
    """The settings of the main job."""

    cringe: dict[str, Any]
    iteration: dict[str, Any]

    example: ClassVar[str] = "cringe/demo"
    required: ClassVar[dict[str, set[str]]] = {
        **Recipe.required,
        "cringe": {"steps", "learningrate"},
        "iteration": {"contexts", "samples", "decoding", "weight", "steps"},
    }
    closed: ClassVar[tuple[str, ...]] = (*Recipe.closed, "iteration")

    def check(self) -> None:
        """As `Recipe.check`, and the sections of CRINGE and of its iteration."""
        super().check()
        check_options("safety:cringe", set(self.cringe) - {"steps"}, "The section 'cringe' of the recipe")
        check_options("safety:cringe", self.iteration["decoding"], "The iteration's decoding")
        for section, name in (("cringe", "steps"), ("iteration", "steps"), ("iteration", "contexts")):
            check_number(getattr(self, section)[name], f"{section}: {name}", low=1, whole=True)


def run_demo(*, recipe_path: Path, out: Path, seed: int, data: Path | None, command: str) -> Report:
    """Run the whole job, or what is left of it.

    Args:
        recipe_path: the recipe file.
        out: the run folder.
        seed: of everything that is random.
        data: a folder of real data, or None for the corpus that ships.
        command: what the user typed, for the report.

    Returns:
        The report; `report.html`, `report.json` and `report.md` are in the run folder.
    """
    recipe = DemoRecipe.read(recipe_path)
    job = Job(recipe, out, seed, data)
    settings = {key: value for key, value in recipe.cringe.items() if key != "steps"}
    steps, iteration = recipe.cringe["steps"], recipe.iteration

    trained = [(job.base, job.prepare())]
    if recipe.base.get("control"):
        control = System("base, trained on", "control", BASE_AGENT, BASE, steps=steps + iteration["steps"])
        plain = {key: value for key, value in settings.items() if not key.startswith("cringe_")}
        trained.append((control, job.train(control, plain)["seconds"]))
    cringe = System("CRINGE", "cringe", "safety:cringe", "base", "reply", steps=steps)
    trained.append((cringe, job.train(cringe, settings)["seconds"]))
    made = job.own_replies(cringe, "replies", iteration, number=1)
    own = job.folder / "replies" / "labelled.jsonl" if made["kept"] else None
    iterated = System(
        "CRINGE iterated", "iterated", "safety:cringe", "cringe", "reply",
        own=own, weight=iteration["weight"], steps=iteration["steps"],
    )  # fmt: skip
    trained.append((iterated, made["seconds"] + job.train(iterated, settings)["seconds"]))

    notes = [
        "CRINGE goes on from the base model, and its iteration from CRINGE, so each has been trained for longer; only "
        'a system "base, trained on", where the table has one, tells what longer training does by itself.'
    ]
    if own is None:
        notes.append(
            f"Of {made['generated']} own replies the labeller called {made['unsafe']} unsafe, so no balanced sample "
            "could be drawn: the iteration had no replies to learn from."
        )
    return job.write_report(
        "CRINGE: a base chat model, one round, and one more round on its own judged replies",
        [job.evaluate(system, seconds) for system, seconds in trained],
        command,
        notes,
        replies=made,
    )
